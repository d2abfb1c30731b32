#ifndef SIMNVML_FAULTS_H
#define SIMNVML_FAULTS_H

#include "simnvml.h"

/* What one call is to suffer, copied out of the scenario so that it can be suffered without the lock. */
struct misdeeds {
    bool any;
    enum misdeed misdeed;
    int rc;
    uint64_t late_us, dstate_seconds;
    char dstate_file[4096];
};

/* `gpu` is -1 for a call that is about no GPU; with `own_only` the faults that name no GPU do not count. */
struct misdeeds misdeeds_of(const struct scenario *s, const char *call, int gpu, bool own_only);

/* Suffers it. The return code to give up with, or OK to go on. */
int misbehave(const struct misdeeds *m);

#endif

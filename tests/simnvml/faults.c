/* The ways in which a call can go wrong other than by an answer: late, hung, uninterruptible, crashed. */
#define _GNU_SOURCE
#include "faults.h"

#include "gate.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A fault's call is a name as exported, or ends in `*` and stands for every name that begins so. */
static bool names(const char *pattern, const char *call) {
    size_t length = strlen(pattern);

    if (length > 0 && pattern[length - 1] == '*')
        return strncmp(pattern, call, length - 1) == 0;
    return strcmp(pattern, call) == 0;
}

struct misdeeds misdeeds_of(const struct scenario *s, const char *call, int gpu, bool own_only) {
    struct misdeeds found = {0};

    for (int i = 0; i < s->fault_count; i++) {
        const struct fault *f = &s->faults[i];

        if ((f->gpu >= 0 ? f->gpu != gpu : own_only) || !names(f->call, call))
            continue;
        if (f->misdeed == IS_LATE) {
            found.late_us += f->value;
        } else if (!found.any) {
            found.any = true;
            found.misdeed = f->misdeed;
            found.rc = (int)f->value;
        }
    }
    found.dstate_seconds = s->dstate_seconds;
    memcpy(found.dstate_file, s->dstate_file, sizeof found.dstate_file);
    return found;
}

/* Less than a millisecond is spent as a driver spends it, on the processor: a sleep would be some 60 us too long. */
static void be_late(uint64_t us) {
    struct timespec left = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    uint64_t end = clock_us(CLOCK_MONOTONIC) + us;

    if (us < 1000)
        while (clock_us(CLOCK_MONOTONIC) < end)
            ;
    else
        while (nanosleep(&left, &left) != 0)
            ;
}

/* The thread waits for a vfork child that only sleeps: state D to all the world. The child has every signal
 * blocked, dies with this thread, and goes by itself after `seconds`. */
static void wait_uninterruptibly(uint64_t seconds) {
    sigset_t all, before;
    pid_t self = getpid(), child;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    child = vfork();
    if (child == 0) {
        struct timespec left = {(time_t)seconds, 0};

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (getppid() == self && nanosleep(&left, &left) != 0)
            ;
        _exit(0);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (child > 0)
        waitpid(child, NULL, 0);
}

/* A write that cannot end: the test has frozen the file's file system, and not even SIGKILL helps till it thaws. */
static void write_and_wait(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (fd < 0)
        return;
    if (write(fd, "stuck\n", 6) == 6)
        fsync(fd);
    close(fd);
}

int misbehave(const struct misdeeds *m) {
    static char *volatile nowhere = NULL;

    if (m->late_us > 0)
        be_late(m->late_us);
    if (!m->any)
        return OK;
    switch (m->misdeed) {
    case HANGS:
        for (;;)
            pause();
    case DSTATE:
        if (m->dstate_file[0] != '\0')
            write_and_wait(m->dstate_file);
        else
            wait_uninterruptibly(m->dstate_seconds);
        return UNKNOWN;
    case CRASHES:
        *nowhere = 1;
        return UNKNOWN;
    default:
        return m->rc;
    }
}

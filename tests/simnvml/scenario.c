/* Reads the scenario: lines of words, described in README.md. A line that makes no sense is an error, not a guess:
 * a test with a typing mistake must fail loudly. */
#define _GNU_SOURCE
#include "simnvml.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_WORDS = 16 };

static const struct {
    const char *name;
    size_t offset;
    bool text;
} gpu_keys[] = {
#define X(key) {#key, offsetof(struct gpu, key), true},
    TEXT_KEYS(X)
#undef X
#define X(key) {#key, offsetof(struct gpu, key), false},
    NUMBER_KEYS(X)
#undef X
};

static bool number(const char *word, uint64_t *out) {
    char *end;

    if (strcmp(word, "none") == 0) {
        *out = NONE;
        return true;
    }
    errno = 0;
    *out = strtoull(word, &end, 0);
    return errno == 0 && end != word && *end == '\0' && *word != '-';
}

static bool number32(const char *word, uint32_t *out) {
    uint64_t wide;

    if (!number(word, &wide))
        return false;
    *out = (uint32_t)wide; /* `none` becomes NO_INSTANCE */
    return wide == NONE || wide <= UINT32_MAX;
}

/* Milliseconds with up to three decimals, as microseconds. */
static bool milliseconds(const char *word, uint64_t *out) {
    uint64_t whole, part = 0;
    char head[TEXT];
    size_t digits = strcspn(word, ".");

    if (digits == 0 || digits >= sizeof head)
        return false;
    memcpy(head, word, digits);
    head[digits] = '\0';
    if (!number(head, &whole) || whole > UINT32_MAX)
        return false;
    if (word[digits] == '.') {
        const char *rest = word + digits + 1;
        size_t length = strlen(rest);

        if (length == 0 || length > 3 || strspn(rest, "0123456789") != length)
            return false;
        part = strtoull(rest, NULL, 10) * (length == 1 ? 100 : length == 2 ? 10 : 1);
    }
    *out = whole * 1000 + part;
    return true;
}

static bool text(const char *word, char *out, size_t size) {
    return (size_t)snprintf(out, size, "%s", word) < size;
}

/* Where `word` stands in a list that a NULL ends, or -1. */
static int choice(const char *word, const char *const *names) {
    for (int i = 0; names[i] != NULL; i++)
        if (strcmp(word, names[i]) == 0)
            return i;
    return -1;
}

/* `fault CALL CODE`, `hang CALL`, `dstate CALL`, `crash CALL`, `latency CALL MS`; for one GPU or for all. */
static bool read_fault(struct scenario *s, int gpu, char **words, int count) {
    static const char *const names[] = {"fault", "hang", "dstate", "crash", "latency", NULL};
    int misdeed = choice(words[0], names);
    bool valued = misdeed == RETURNS || misdeed == IS_LATE;
    struct fault *f = &s->faults[s->fault_count];

    if (misdeed < 0 || count != (valued ? 3 : 2) || s->fault_count == MAX_FAULTS)
        return false;
    f->gpu = gpu;
    f->misdeed = (enum misdeed)misdeed;
    s->fault_count++;
    if (!text(words[1], f->call, TEXT))
        return false;
    return !valued || (misdeed == IS_LATE ? milliseconds(words[2], &f->value) : number(words[2], &f->value));
}

/* `event SEQUENCE gpu N xid|recovery VALUE [GI CI]` */
static bool read_event(struct scenario *s, char **words, int count) {
    static const char *const names[] = {"xid", "recovery", NULL};
    static const uint64_t types[] = {0x8, 0x8000};
    struct event *e = &s->events[s->event_count];
    uint64_t gpu;
    int type;

    if ((count != 6 && count != 8) || s->event_count == MAX_EVENTS || strcmp(words[2], "gpu") != 0)
        return false;
    type = choice(words[4], names);
    if (type < 0 || !number(words[3], &gpu) || gpu >= MAX_GPUS)
        return false;
    *e = (struct event){.type = types[type], .gpu = (int)gpu, .gi = NO_INSTANCE, .ci = NO_INSTANCE};
    s->event_count++;
    return number(words[1], &e->sequence) && number(words[5], &e->data) &&
           (count == 6 || (number32(words[6], &e->gi) && number32(words[7], &e->ci)));
}

/* `link N up|down gpu|switch REMOTE_BUS_ID [REPLAY RECOVERY CRC_FLIT CRC_DATA ECC_DATA]` */
static bool read_link(struct gpu *g, char **words, int count) {
    static const char *const states[] = {"down", "up", NULL};
    static const char *const types[] = {"gpu", "other", "switch", NULL};
    uint64_t index;
    struct link *l;

    if ((count != 5 && count != 5 + LINK_ERRORS) || !number(words[1], &index) || index >= MAX_LINKS)
        return false;
    l = &g->links[index];
    l->present = true;
    l->active = choice(words[2], states) == 1;
    l->type = (enum link_type)choice(words[3], types);
    for (int i = 5; i < count; i++)
        if (!number(words[i], &l->errors[i - 5]))
            return false;
    return choice(words[2], states) >= 0 && choice(words[3], types) >= 0 && text(words[4], l->remote, TEXT);
}

/* `mig N GI CI SLICES CI_SLICES MULTIPROCESSORS MEMORY_MIB PROFILE UUID` */
static bool read_mig(struct gpu *g, char **words, int count) {
    uint64_t index;
    struct mig *m;

    if (count != 10 || !number(words[1], &index) || index >= MAX_MIG)
        return false;
    m = &g->mig[index];
    m->present = true;
    return number32(words[2], &m->gi) && number32(words[3], &m->ci) && number32(words[4], &m->slices) &&
           number32(words[5], &m->ci_slices) && number32(words[6], &m->multiprocessors) &&
           number(words[7], &m->memory_mib) && text(words[8], m->profile, TEXT) && text(words[9], m->uuid, TEXT);
}

/* `process compute|graphics|mps PID BYTES GI CI SM_UTIL MEMORY_UTIL` */
static bool read_process(struct gpu *g, char **words, int count) {
    static const char *const kinds[] = {"compute", "graphics", "mps", NULL};
    struct process *p = &g->processes[g->process_count];

    if (count != 8 || g->process_count == MAX_PROCESSES || choice(words[1], kinds) < 0)
        return false;
    g->process_count++;
    p->kind = (enum process_kind)choice(words[1], kinds);
    return number32(words[2], &p->pid) && number(words[3], &p->memory) && number32(words[4], &p->gi) &&
           number32(words[5], &p->ci) && number32(words[6], &p->sm_util) && number32(words[7], &p->memory_util);
}

/* `retired_page CAUSE ADDRESS TIMESTAMP` */
static bool read_page(struct gpu *g, char **words, int count) {
    struct page *p = &g->pages[g->page_count];

    if (count != 4 || g->page_count == MAX_PAGES)
        return false;
    g->page_count++;
    return number32(words[1], &p->cause) && number(words[2], &p->address) && number(words[3], &p->timestamp);
}

/* One line about one GPU; `rest` is the line after its key, for a value with spaces in it. */
static bool read_gpu_line(struct scenario *s, int index, char **words, int count, const char *rest) {
    static const char *const states[] = {"present", "lost", "reset_required", "absent", NULL};
    struct gpu *g = &s->gpus[index];

    for (size_t i = 0; i < sizeof gpu_keys / sizeof gpu_keys[0]; i++) {
        char *member = (char *)g + gpu_keys[i].offset;

        if (strcmp(words[0], gpu_keys[i].name) != 0)
            continue;
        if (gpu_keys[i].text)
            return text(rest, member, TEXT);
        return count == 2 && number(words[1], (uint64_t *)(void *)member);
    }
    if (strcmp(words[0], "state") == 0 && count == 2 && choice(words[1], states) >= 0) {
        g->state = (enum gpu_state)choice(words[1], states);
        return true;
    }
    if (strcmp(words[0], "link") == 0)
        return read_link(g, words, count);
    if (strcmp(words[0], "mig") == 0)
        return read_mig(g, words, count);
    if (strcmp(words[0], "process") == 0)
        return read_process(g, words, count);
    if (strcmp(words[0], "retired_page") == 0)
        return read_page(g, words, count);
    return read_fault(s, index, words, count);
}

static bool read_node_line(struct scenario *s, char **words, int count) {
    uint64_t gpus;

    if (strcmp(words[0], "event") == 0)
        return read_event(s, words, count);
    if (count != 2)
        return read_fault(s, -1, words, count);
    if (strcmp(words[0], "format") == 0)
        return strcmp(words[1], "1") == 0;
    if (strcmp(words[0], "driver") == 0)
        return text(words[1], s->driver, TEXT);
    if (strcmp(words[0], "nvml") == 0)
        return text(words[1], s->nvml, TEXT);
    if (strcmp(words[0], "cuda") == 0)
        return number(words[1], &s->cuda);
    if (strcmp(words[0], "dstate_seconds") == 0)
        return number(words[1], &s->dstate_seconds);
    if (strcmp(words[0], "control") == 0)
        return text(words[1], s->control, sizeof s->control);
    if (strcmp(words[0], "dstate_file") == 0)
        return text(words[1], s->dstate_file, sizeof s->dstate_file);
    if (strcmp(words[0], "gpus") == 0) {
        s->gpu_count = number(words[1], &gpus) && gpus <= MAX_GPUS ? (int)gpus : -1;
        return s->gpu_count >= 0;
    }
    return read_fault(s, -1, words, count);
}

static bool read_line(struct scenario *s, char *line) {
    char *words[MAX_WORDS] = {NULL}, *save = NULL, *rest = line, *key;
    int count = 0;
    unsigned index;
    int used = 0;

    line[strcspn(line, "\n")] = '\0';
    key = line + strspn(line, " \t");
    if (*key == '\0' || *key == '#')
        return true;
    rest = key + strcspn(key, " \t");
    rest = strdup(rest + strspn(rest, " \t"));
    for (char *w = strtok_r(key, " \t", &save); w != NULL && count < MAX_WORDS; w = strtok_r(NULL, " \t", &save))
        words[count++] = w;

    bool good;
    if (sscanf(words[0], "gpu.%u.%n", &index, &used) == 1 && used > 0) {
        words[0] += used;
        good = index < MAX_GPUS && count > 1 && rest != NULL && read_gpu_line(s, (int)index, words, count, rest);
    } else {
        good = count > 1 && read_node_line(s, words, count);
    }
    free(rest);
    return good;
}

static void blank(struct scenario *s) {
    memset(s, 0, sizeof *s);
    s->readable = true;
    s->cuda = NONE;
    s->dstate_seconds = 600;
    for (int i = 0; i < MAX_GPUS; i++) {
#define X(key) s->gpus[i].key = NONE;
        NUMBER_KEYS(X)
#undef X
    }
}

static void read_file(struct scenario *s, FILE *file, const char *path) {
    char *line = NULL;
    size_t size = 0;
    unsigned long row = 0;

    blank(s);
    while (getline(&line, &size, file) > 0) {
        char shown[120];

        row++;
        snprintf(shown, sizeof shown, "%s", line);
        if (read_line(s, line))
            continue;
        fprintf(stderr, "simnvml: %s:%lu: not understood: %s\n", path, row, shown);
        s->readable = false;
        break;
    }
    free(line);
}

static const char *path_of_scenario(void) {
    static char *path; /* kept: getenv is not safe beside a thread that changes the environment */

    if (path == NULL && getenv("SIMNVML_SCENARIO") != NULL)
        path = strdup(getenv("SIMNVML_SCENARIO"));
    return path;
}

const struct scenario *scenario_now(void) {
    static struct scenario two[2], *current = &two[0];
    static struct stat seen;
    struct stat now;
    const char *path = path_of_scenario();
    struct scenario *next = current == &two[0] ? &two[1] : &two[0];
    FILE *file;

    if (path == NULL || stat(path, &now) != 0)
        return current;
    if (now.st_ino == seen.st_ino && now.st_size == seen.st_size && now.st_dev == seen.st_dev &&
        now.st_mtim.tv_sec == seen.st_mtim.tv_sec && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
        return current;
    file = fopen(path, "re");
    if (file == NULL)
        return current;
    if (fstat(fileno(file), &seen) == 0) { /* of what is read, which may be newer than what was looked at */
        read_file(next, file, path);
        current = next;
    }
    fclose(file);
    return current;
}

int scenario_watch(void) {
    const char *path = path_of_scenario();
    char *copy = path == NULL ? NULL : strdup(path);
    int fd = copy == NULL ? -1 : inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

    if (fd >= 0 && inotify_add_watch(fd, dirname(copy), IN_MOVED_TO) < 0) {
        close(fd);
        fd = -1;
    }
    free(copy);
    return fd;
}

bool scenario_append(const char *line) {
    const char *path = path_of_scenario();
    int fd = path == NULL ? -1 : open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    bool written;

    if (fd < 0)
        return false;
    written = write(fd, line, strlen(line)) == (ssize_t)strlen(line);
    close(fd);
    return written;
}

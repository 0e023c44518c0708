/* Counts the calls by which a process changes what lies below one folder, and does one of them ill.
 *
 * For LD_PRELOAD; armed by `shim_arm`. Only calls that Python makes are met, not those inside the C
 * library (fwrite), which convscope does not use to write.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, BEFORE, HALF, FAIL, FAIL_FROM, SHORT, LATE, READ };

static char root[PATH_MAX];
static size_t length;
static int mode, error, told = -1;
static long at;
static _Atomic long count;

/* mode: BEFORE ends the process before the at-th call, HALF after half of it (a write) or all of it;
 * FAIL lets it fail, FAIL_FROM every one from there on; SHORT writes half; LATE does it, and says
 * that it failed; READ counts only what is opened to be read, and lets that fail. log: a file descriptor to which each call is told, or -1. */
void shim_arm(const char *folder, int how, long call, int number, int log) {
    strncpy(root, folder, sizeof root - 1);
    length = strlen(root);
    error = number;
    at = call;
    count = 0;
    told = log;
    mode = how;
}

long shim_count(void) { return count; }

static int below(const char *path) {
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return size > 0;
}

static void of_name(int folder, const char *name, char *path) {
    char home[PATH_MAX] = "";
    if (name[0] != '/' && (folder == AT_FDCWD ? !getcwd(home, sizeof home) : !of_descriptor(folder, home)))
        home[0] = 0;
    snprintf(path, PATH_MAX, "%s", home);
    strncat(path, name[0] == '/' ? "" : "/", PATH_MAX - strlen(path) - 1);
    strncat(path, name, PATH_MAX - strlen(path) - 1);
}

/* Whether this call, which is one below the folder, is to be done ill. */
static int is_due(const char *call, const char *path, const char *other) {
    if ((!below(path) && !(other && below(other))) || (mode == READ) != !strcmp(call, "open"))
        return 0;
    long now = ++count;
    if (told >= 0) {
        char line[3 * PATH_MAX];
        int size = snprintf(line, sizeof line, "%s\t%s\t%s\n", call, path, other ? other : "");
        syscall(SYS_write, told, line, (size_t)size);
    }
    int removes = !strcmp(call, "unlink") || !strcmp(call, "rmdir");
    if (removes && error != EIO && (mode == FAIL || mode == FAIL_FROM || mode == LATE))
        return 0; /* it needs no room */
    if (mode == BEFORE && now == at)
        _exit(137);
    return mode > COUNT && (now == at || (mode == FAIL_FROM && now > at));
}

/* The end of a call that is no write. */
#define DO(due, call)                                  \
    do {                                               \
        int is = (due);                                \
        if (is && (mode == FAIL || mode == FAIL_FROM || mode == READ)) \
            return errno = error, -1;                  \
        long result = (call);                          \
        if (is && mode == HALF)                        \
            _exit(137);                                \
        if (is && mode == LATE)                        \
            return errno = error, -1;                  \
        return result;                                 \
    } while (0)

static int due_of(int descriptor, const char *call) {
    char path[PATH_MAX];
    return mode && of_descriptor(descriptor, path) && is_due(call, path, NULL);
}

static int due_at(int folder, const char *name, const char *call) {
    char path[PATH_MAX];
    if (!mode)
        return 0;
    of_name(folder, name, path);
    return is_due(call, path, NULL);
}

static int due_both(int from, const char *old, int to, const char *new, const char *call) {
    char path[PATH_MAX], other[PATH_MAX];
    if (!mode)
        return 0;
    of_name(from, old, path), of_name(to, new, other);
    return is_due(call, path, other);
}

static ssize_t part(int due, size_t size, ssize_t (*now)(void *, size_t), void *given) {
    if (!due)
        return now(given, size);
    if (mode == FAIL || mode == FAIL_FROM)
        return errno = error, -1;
    if (mode == LATE) {
        now(given, size);
        return errno = error, -1;
    }
    ssize_t done = size > 1 || mode == HALF ? now(given, size / 2) : now(given, size);
    if (mode == HALF)
        _exit(137);
    return done;
}

struct Write { int to; const void *from; off_t place; };

static ssize_t written(void *given, size_t size) {
    struct Write *write = given;
    if (write->place < 0)
        return syscall(SYS_write, write->to, write->from, size);
    return syscall(SYS_pwrite64, write->to, write->from, size, write->place);
}

ssize_t write(int to, const void *from, size_t size) {
    struct Write all = {to, from, -1};
    return part(due_of(to, "write"), size, written, &all);
}

ssize_t pwrite64(int to, const void *from, size_t size, off64_t place) {
    struct Write all = {to, from, place};
    return part(due_of(to, "write"), size, written, &all);
}

ssize_t pwrite(int to, const void *from, size_t size, off_t place) {
    return pwrite64(to, from, size, place);
}

ssize_t writev(int to, const struct iovec *parts, int many) {
    DO(due_of(to, "write"), syscall(SYS_writev, to, parts, many));
}

static int opened(int folder, const char *name, int flags, va_list rest) {
    int makes = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
    int kind = makes ? va_arg(rest, int) : 0;
    const char *call = flags & (O_CREAT | O_TRUNC) ? "create" : "open";
    DO(due_at(folder, name, call), syscall(SYS_openat, folder, name, flags, kind));
}

DIR *opendir(const char *name) {
    DIR *(*real)(const char *) = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    if (due_at(AT_FDCWD, name, "open"))
        return errno = error, (DIR *)0;
    return real(name);
}

#define OPEN(name)                                       \
    int name(const char *path, int flags, ...) {         \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        int result = opened(AT_FDCWD, path, flags, rest); \
        va_end(rest);                                    \
        return result;                                   \
    }
#define OPENAT(name)                                       \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest;                                      \
        va_start(rest, flags);                             \
        int result = opened(folder, path, flags, rest);    \
        va_end(rest);                                      \
        return result;                                     \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int fsync(int descriptor) { DO(due_of(descriptor, "fsync"), syscall(SYS_fsync, descriptor)); }
int fdatasync(int descriptor) { DO(due_of(descriptor, "fsync"), syscall(SYS_fdatasync, descriptor)); }
int ftruncate64(int descriptor, off64_t size) {
    DO(due_of(descriptor, "truncate"), syscall(SYS_ftruncate, descriptor, size));
}
int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    DO(due_both(from, old, to, new, "rename"), syscall(SYS_renameat2, from, old, to, new, flags));
}
int renameat(int from, const char *old, int to, const char *new) {
    return renameat2(from, old, to, new, 0);
}
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int folder, const char *name, int flags) {
    const char *call = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
    DO(due_at(folder, name, call), syscall(SYS_unlinkat, folder, name, flags));
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t kind) {
    DO(due_at(folder, name, "mkdir"), syscall(SYS_mkdirat, folder, name, kind));
}
int mkdir(const char *name, mode_t kind) { return mkdirat(AT_FDCWD, name, kind); }

int linkat(int from, const char *old, int to, const char *new, int flags) {
    DO(due_both(from, old, to, new, "link"), syscall(SYS_linkat, from, old, to, new, flags));
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
int symlinkat(const char *to, int folder, const char *name) {
    DO(due_at(folder, name, "link"), syscall(SYS_symlinkat, to, folder, name));
}
int symlink(const char *to, const char *name) { return symlinkat(to, AT_FDCWD, name); }

/* A disk that fails, a file system without locks, a clock that jumps: LD_PRELOAD for one process and its children.

   HEADWATER_FAULT_TRIGGER  a file; while it is there, what is below happens
   HEADWATER_FAULT_UNDER    a directory (its real path); calls on files in it fail
   HEADWATER_FAULT_ERRNO    with this error
   HEADWATER_FAULT_READS    set: opening files to read them fails as well
   HEADWATER_FAULT_FLOCK    flock fails with this error, trigger or not
   HEADWATER_FAULT_CLOCK    seconds by which the clock of the day is off */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

static int triggered(void)
{
    const char *file = getenv("HEADWATER_FAULT_TRIGGER");
    int kept = errno, there = file && syscall(SYS_access, file, F_OK) == 0;
    errno = kept;
    return there;
}

static int is_under(const char *path)
{
    const char *root = getenv("HEADWATER_FAULT_UNDER");
    size_t length = root ? strlen(root) : 0;
    return length && strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int fails(const char *path)
{
    const char *number = getenv("HEADWATER_FAULT_ERRNO");
    if (!number || !path || !triggered() || !is_under(path))
        return 0;
    errno = atoi(number);
    return 1;
}

static const char *path_of(int descriptor, char *held)
{
    char link[64];
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlink, link, held, PATH_MAX - 1);
    errno = kept;
    if (length < 0)
        return NULL;
    held[length] = 0;
    return held;
}

static int descriptor_fails(int descriptor)
{
    char held[PATH_MAX];
    if (!getenv("HEADWATER_FAULT_ERRNO") || !triggered())
        return 0;
    return fails(path_of(descriptor, held));
}

static int at_fails(int directory, const char *path)
{
    char held[PATH_MAX], whole[2 * PATH_MAX];
    if (!getenv("HEADWATER_FAULT_ERRNO") || !triggered())
        return 0;
    if (path[0] == '/')
        return fails(path);
    if (directory == AT_FDCWD ? !getcwd(held, sizeof held) : !path_of(directory, held))
        return 0;
    snprintf(whole, sizeof whole, "%s/%s", held, path);
    return fails(whole);
}

static int open_fails(int directory, const char *path, int flags)
{
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    return (writes || getenv("HEADWATER_FAULT_READS")) && at_fails(directory, path);
}

#define MODE(flags, last)                                                                                              \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list rest;                                                                                                  \
        va_start(rest, last);                                                                                          \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        MODE(flags, flags)                                                                                             \
        if (open_fails(AT_FDCWD, path, flags))                                                                         \
            return -1;                                                                                                 \
        return REAL(int, name, const char *, int, ...)(path, flags, mode);                                             \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int directory, const char *path, int flags, ...)                                                          \
    {                                                                                                                  \
        MODE(flags, flags)                                                                                             \
        if (open_fails(directory, path, flags))                                                                        \
            return -1;                                                                                                 \
        return REAL(int, name, int, const char *, int, ...)(directory, path, flags, mode);                             \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                                                    \
    FILE *name(const char *path, const char *mode)                                                                     \
    {                                                                                                                  \
        int writes = strpbrk(mode, "wa+") != NULL;                                                                     \
        if ((writes || getenv("HEADWATER_FAULT_READS")) && at_fails(AT_FDCWD, path))                                   \
            return NULL;                                                                                               \
        return REAL(FILE *, name, const char *, const char *)(path, mode);                                             \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* Calls on a descriptor, and calls on a path. */
#define ON_FILE(type, name, parameters, arguments, ...)                                                                \
    type name parameters { return descriptor_fails(file) ? -1 : REAL(type, name, __VA_ARGS__) arguments; }
ON_FILE(ssize_t, write, (int file, const void *data, size_t size), (file, data, size), int, const void *, size_t)
ON_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at), int, const void *,
        size_t, off_t)
ON_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at), int,
        const void *, size_t, off64_t)
ON_FILE(ssize_t, writev, (int file, const struct iovec *data, int count), (file, data, count), int,
        const struct iovec *, int)
ON_FILE(ssize_t, sendfile, (int file, int from, off_t *at, size_t size), (file, from, at, size), int, int, off_t *,
        size_t)
ON_FILE(ssize_t, sendfile64, (int file, int from, off64_t *at, size_t size), (file, from, at, size), int, int,
        off64_t *, size_t)
ON_FILE(int, fsync, (int file), (file), int)
ON_FILE(int, fdatasync, (int file), (file), int)
ON_FILE(int, ftruncate, (int file, off_t size), (file, size), int, off_t)
ON_FILE(int, ftruncate64, (int file, off64_t size), (file, size), int, off64_t)

#define ON_PATH(name, parameters, arguments, directory, path, ...)                                                     \
    int name parameters { return at_fails(directory, path) ? -1 : REAL(int, name, __VA_ARGS__) arguments; }
ON_PATH(rename, (const char *from, const char *to), (from, to), AT_FDCWD, to, const char *, const char *)
ON_PATH(renameat, (int at, const char *from, int other, const char *to), (at, from, other, to), other, to, int,
        const char *, int, const char *)
ON_PATH(link, (const char *from, const char *to), (from, to), AT_FDCWD, to, const char *, const char *)
ON_PATH(linkat, (int at, const char *from, int other, const char *to, int flags), (at, from, other, to, flags), other,
        to, int, const char *, int, const char *, int)
ON_PATH(symlink, (const char *from, const char *to), (from, to), AT_FDCWD, to, const char *, const char *)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, const char *, mode_t)
ON_PATH(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), at, path, int, const char *, mode_t)
ON_PATH(rmdir, (const char *path), (path), AT_FDCWD, path, const char *)
ON_PATH(unlink, (const char *path), (path), AT_FDCWD, path, const char *)
ON_PATH(unlinkat, (int at, const char *path, int flags), (at, path, flags), at, path, int, const char *, int)

int posix_fallocate(int file, off_t at, off_t size)
{
    int kept = errno;
    if (descriptor_fails(file)) {
        int number = errno;
        errno = kept;
        return number;
    }
    return REAL(int, posix_fallocate, int, off_t, off_t)(file, at, size);
}

int flock(int file, int operation)
{
    const char *number = getenv("HEADWATER_FAULT_FLOCK");
    if (number) {
        errno = atoi(number);
        return -1;
    }
    return REAL(int, flock, int, int)(file, operation);
}

static long jumped(void)
{
    const char *seconds = getenv("HEADWATER_FAULT_CLOCK");
    return seconds && triggered() ? atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int status = (int)syscall(SYS_clock_gettime, clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += jumped();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int status = (int)syscall(SYS_gettimeofday, now, zone);
    if (status == 0)
        now->tv_sec += jumped();
    return status;
}

time_t time(time_t *kept)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (kept)
        *kept = now.tv_sec;
    return now.tv_sec;
}

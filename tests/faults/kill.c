/* Preloaded into a process: counts the calls that change a file below one folder, or send to a registry, and kills the
 * process before the n-th of them or in its middle; or interrupts it, or lets the call fail, or all from there on; or
 * makes the disk full after so many bytes. Inactive until it is armed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t length; /* of `folder`; 0: inactive */
static long due, calls;
static int how;              /* what happens at the call that is due */
static int network;          /* what is sent counts too */
static long long space = -1; /* bytes that still fit; -1: any number */

enum { KILL, TORN, INTERRUPT, FAIL, READ_ONLY }; /* TORN: half of the bytes are written before the end */
enum { GO_ON, HALF, FAILED };

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faults_arm(const char *path, long at, int what, long long bytes, int sends) {
    strncpy(folder, path, sizeof folder - 1);
    due = at, how = what, space = bytes, network = sends, calls = 0;
    length = strlen(folder);
}

long faults_calls(void) { return calls; }

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int below(const char *path) { return length && strncmp(path, folder, length) == 0; }

static int below_at(int dir, const char *path) {
    char full[PATH_MAX], link[64];
    if (!length || !path) return 0;
    if (path[0] == '/') return below(path);
    if (dir == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    ssize_t n = readlink(link, full, sizeof full - 1);
    if (n < 0) return 0;
    full[n] = 0;
    return below(full);
}

static int below_fd(int fd) {
    char full[PATH_MAX], link[64];
    if (!length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, full, sizeof full - 1);
    if (n < 0) return 0;
    full[n] = 0;
    return below(full);
}

/* Counts one call. HALF: this is the one that ends in the middle; FAILED: it does nothing, errno says why. */
static int counted(int writes) {
    ++calls;
    if (how == READ_ONLY && due && calls >= due) return errno = EROFS, FAILED;
    if (calls != due) return GO_ON;
    if (how == FAIL) return errno = EIO, FAILED;
    if (how == INTERRUPT) return kill(getpid(), SIGINT), GO_ON;
    if (how == TORN && writes) return HALF;
    end();
    return GO_ON;
}

/* How many of `wanted` bytes fit; -1 with ENOSPC: none. */
static ssize_t fitting(size_t wanted) {
    if (space < 0 || wanted == 0) return wanted;
    if (space == 0) return errno = ENOSPC, -1;
    if ((long long)wanted > space) wanted = space;
    space -= wanted;
    return wanted;
}

#define CHANGES(type, name, params, args, where)     \
    type name params {                               \
        if ((where) && counted(0)) return -1;        \
        return REAL(name) args;                      \
    }

#define OPENS(name, params, args, where)                                                  \
    int name params {                                                                     \
        mode_t mode = 0;                                                                  \
        if (flags & (O_CREAT | O_TMPFILE)) {                                              \
            va_list list;                                                                 \
            va_start(list, flags);                                                        \
            mode = va_arg(list, mode_t);                                                  \
            va_end(list);                                                                 \
        }                                                                                 \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && (where) && counted(0)) return -1; \
        return REAL(name) args;                                                           \
    }

#define WRITES(name, params, target, count, call, half)      \
    ssize_t name params {                                    \
        if (!below_fd(target)) return call;                  \
        int now = counted(1);                                \
        if (now == FAILED) return -1;                        \
        if (now == HALF) {                                        \
            count = half;                                    \
            if (count) call;                                 \
            end();                                           \
        }                                                    \
        ssize_t fits = fitting(count);                       \
        if (fits < 0) return -1;                             \
        count = fits;                                        \
        return call;                                         \
    }

OPENS(open, (const char *path, int flags, ...), (path, flags, mode), below_at(AT_FDCWD, path))
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode), below_at(AT_FDCWD, path))
OPENS(openat, (int dir, const char *path, int flags, ...), (dir, path, flags, mode), below_at(dir, path))
OPENS(openat64, (int dir, const char *path, int flags, ...), (dir, path, flags, mode), below_at(dir, path))

WRITES(write, (int fd, const void *data, size_t n), fd, n, REAL(write)(fd, data, n), n / 2)
WRITES(pwrite, (int fd, const void *data, size_t n, off_t at), fd, n, REAL(pwrite)(fd, data, n, at), n / 2)
WRITES(pwrite64, (int fd, const void *data, size_t n, off64_t at), fd, n, REAL(pwrite64)(fd, data, n, at), n / 2)
WRITES(copy_file_range, (int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags), out, n,
       REAL(copy_file_range)(in, from, out, to, n, flags), n / 2)
WRITES(sendfile, (int out, int in, off_t *from, size_t n), out, n, REAL(sendfile)(out, in, from, n), n / 2)
WRITES(sendfile64, (int out, int in, off64_t *from, size_t n), out, n, REAL(sendfile64)(out, in, from, n), n / 2)

CHANGES(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), below_fd(fd))
CHANGES(int, ftruncate, (int fd, off_t size), (fd, size), below_fd(fd))
CHANGES(int, ftruncate64, (int fd, off64_t size), (fd, size), below_fd(fd))
CHANGES(int, fsync, (int fd), (fd), below_fd(fd))
CHANGES(int, fdatasync, (int fd), (fd), below_fd(fd))
CHANGES(int, flock, (int fd, int how), (fd, how), below_fd(fd))
CHANGES(int, mkdir, (const char *path, mode_t mode), (path, mode), below_at(AT_FDCWD, path))
CHANGES(int, mkdirat, (int dir, const char *path, mode_t mode), (dir, path, mode), below_at(dir, path))
CHANGES(int, rmdir, (const char *path), (path), below_at(AT_FDCWD, path))
CHANGES(int, unlink, (const char *path), (path), below_at(AT_FDCWD, path))
CHANGES(int, unlinkat, (int dir, const char *path, int flags), (dir, path, flags), below_at(dir, path))
CHANGES(int, link, (const char *from, const char *to), (from, to), below_at(AT_FDCWD, to))
CHANGES(int, linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags),
        below_at(b, to))
CHANGES(int, symlink, (const char *from, const char *to), (from, to), below_at(AT_FDCWD, to))
CHANGES(int, rename, (const char *from, const char *to), (from, to), below_at(AT_FDCWD, from))
CHANGES(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), below_at(a, from))
CHANGES(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags),
        below_at(a, from))

ssize_t send(int fd, const void *data, size_t n, int flags) {
    if (!length || !network) return REAL(send)(fd, data, n, flags);
    int now = counted(1);
    if (now == FAILED) return -1;
    if (now == HALF) {
        REAL(send)(fd, data, n / 2, flags);
        end();
    }
    return REAL(send)(fd, data, n, flags);
}

CHANGES(int, connect, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size), length && network)

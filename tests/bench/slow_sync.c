/* LD_PRELOAD: each fsync and fdatasync takes SLOW_SYNC_MS longer, and, if SYNC_LOG names a file, is told there (one byte a call,
 * after it has returned). Built by the tests and the bench. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static void after_sync(void) {
    const char *slow = getenv("SLOW_SYNC_MS"), *log = getenv("SYNC_LOG");
    if (slow) usleep(1000 * atoi(slow));
    if (log) {
        int fd = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0) {
            if (write(fd, "s", 1) != 1) abort();
            close(fd);
        }
    }
}

#define WRAP(name)                                                 \
    int name(int fd) {                                             \
        static int (*real)(int);                                   \
        if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, #name);   \
        int result = real(fd);                                     \
        after_sync();                                              \
        return result;                                             \
    }

WRAP(fsync)
WRAP(fdatasync)

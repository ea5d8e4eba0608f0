/* A disk that is slow, or does not sync, or loses power: preloaded into a daemon, it stands before its writes.
 *
 * DISK_FOLDER is the folder whose files it stands before, DISK_CONTROL a file of two uint32 that may change at any time:
 * microseconds that each write and each sync takes longer, and how many of a thousand syncs fail. DISK_LOG, where set, is
 * told of every write what it wrote over, and of every sync that went well, so that `disk.py` can take back what no sync
 * had made last:
 *   'W' path-length:u16 offset:u64 length:u64 old-length:u64 path old-bytes     'S' path-length:u16 path
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *folder;
static volatile uint32_t *control;
static int journal = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("DISK_CONTROL"), *told = getenv("DISK_LOG");
    folder = getenv("DISK_FOLDER");
    if (!folder || !where) return;
    int fd = open(where, O_RDWR | O_CLOEXEC);
    void *found = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) control = found;
    if (told) journal = open(told, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* The path of a file of the folder that outlasts a loss of power, or 0. */
static int ours(int fd, char *path) {
    char link[32] = "/proc/self/fd/", digits[12];
    int n = 0, size = (int)strlen(folder);
    if (fd < 0) return 0;
    do digits[n++] = (char)('0' + fd % 10); while (fd /= 10);
    char *end = link + strlen(link);
    while (n) *end++ = digits[--n];
    *end = 0;
    ssize_t length = readlink(link, path, 4095);
    if (length <= size || strncmp(path, folder, (size_t)size)) return 0;
    path[length] = 0;
    return length < 4 || strcmp(path + length - 4, "-shm");
}

static void out(const void *data, size_t size) {
    while (size) {
        ssize_t done = syscall(SYS_write, journal, data, size);
        if (done <= 0) return;
        data = (const char *)data + done;
        size -= (size_t)done;
    }
}

static void note(int fd, const char *path, uint64_t offset, uint64_t length) {
    struct stat now;
    uint64_t old = 0;
    char *record;
    uint16_t name = (uint16_t)strlen(path);
    if (fstat(fd, &now) == 0 && (uint64_t)now.st_size > offset)
        old = (uint64_t)now.st_size - offset < length ? (uint64_t)now.st_size - offset : length;
    if (!(record = malloc(27 + name + old))) return;
    record[0] = 'W';
    memcpy(record + 1, &name, 2), memcpy(record + 3, &offset, 8), memcpy(record + 11, &length, 8);
    memcpy(record + 27, path, name);
    int again = old ? open(path, O_RDONLY | O_CLOEXEC) : -1;  /* it may be open for writing alone */
    ssize_t got = again < 0 ? 0 : pread(again, record + 27 + name, old, (off_t)offset);
    if (again >= 0) close(again);
    old = got < 0 ? 0 : (uint64_t)got;
    memcpy(record + 19, &old, 8);
    out(record, 27 + name + old);
    free(record);
}

static void before(int fd, const char *path, off_t offset, size_t length) {
    if (control[0]) usleep(control[0]);
    if (journal < 0 || offset < 0) return;
    pthread_mutex_lock(&lock);
    note(fd, path, (uint64_t)offset, length);
    pthread_mutex_unlock(&lock);
}

ssize_t write(int fd, const void *data, size_t size) {
    char path[4096];
    int kept = errno;
    if (control && ours(fd, path)) {
        int appends = fcntl(fd, F_GETFL) & O_APPEND;
        before(fd, path, lseek(fd, 0, SEEK_CUR) * !appends + (appends ? lseek(fd, 0, SEEK_END) : 0), size);
    }
    errno = kept;
    return syscall(SYS_write, fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    char path[4096];
    if (control && ours(fd, path)) before(fd, path, offset, size);
    return syscall(SYS_pwrite64, fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

static int synced(int fd, long call) {
    char path[4096], record[3 + 4096];
    if (!control || !ours(fd, path)) return (int)syscall(call, fd);
    if (control[0]) usleep(control[0]);
    if (control[1] && (uint32_t)(random() % 1000) < control[1]) {
        errno = EIO;
        return -1;
    }
    int done = (int)syscall(call, fd);
    uint16_t name = (uint16_t)strlen(path);
    if (done == 0 && journal >= 0) {
        record[0] = 'S', memcpy(record + 1, &name, 2), memcpy(record + 3, path, name);
        pthread_mutex_lock(&lock);
        out(record, 3u + name);
        pthread_mutex_unlock(&lock);
    }
    return done;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

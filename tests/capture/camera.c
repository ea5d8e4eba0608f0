/* A V4L2 camera in place of the file $CAMERA, for programs that preload this: FFmpeg's own code for cameras runs, the kernel's does not.
 * It shows a white square that moves along a grey field, YUYV 4:2:2; where the file is gone, it is unplugged. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MOST 8
static int camera = -1, width = 640, height = 480, rate = 25, queued[MOST], waiting, shown, taken;
static long long began; /* of the camera's own clock, in ns: its pictures are as far apart as it takes them, however late they are read */
static void *memory[MOST];

static long long now(void) {
    struct timespec is;
    clock_gettime(CLOCK_MONOTONIC, &is);
    return is.tv_sec * 1000000000LL + is.tv_nsec;
}

static int plugged(void) { return access(getenv("CAMERA"), F_OK) == 0; }

static int is_camera(const char *path) { return getenv("CAMERA") && strcmp(path, getenv("CAMERA")) == 0; }

static int opened(const char *name, const char *path, int flags, int mode) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
    int descriptor = real(path, flags, mode);
    if (descriptor >= 0 && is_camera(path)) camera = descriptor, waiting = 0;
    return descriptor;
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return opened("open64", path, flags, mode);
}

int close(int descriptor) {
    int (*real)(int) = dlsym(RTLD_NEXT, "close");
    if (descriptor == camera) camera = -1;
    return real(descriptor);
}

static void *mapped(int descriptor, size_t size, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
    void *made = real(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory[offset / 4096] = made;
    return made;
}

void *mmap(void *at, size_t size, int protection, int flags, int descriptor, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
    if (descriptor >= 0 && descriptor == camera) return mapped(descriptor, size, offset);
    return real(at, size, protection, flags, descriptor, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int descriptor, off64_t offset) {
    return mmap(at, size, protection, flags, descriptor, offset);
}

static void draw(unsigned char *pixels) {
    int left = shown * 4 % (width - 40);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            int white = x >= left && x < left + 40 && y >= 40 && y < 80;
            *pixels++ = white ? 235 : 85;
            *pixels++ = 128;
        }
}

static int answer(unsigned long request, void *data) {
    struct v4l2_capability *can = data;
    struct v4l2_fmtdesc *kind = data;
    struct v4l2_format *format = data;
    struct v4l2_streamparm *pace = data;
    struct v4l2_requestbuffers *buffers = data;
    struct v4l2_buffer *buffer = data;
    if (!plugged()) return ENODEV;
    switch ((unsigned)request) {
    case VIDIOC_QUERYCAP:
        memset(can, 0, sizeof *can);
        strcpy((char *)can->driver, "test");
        can->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    case VIDIOC_G_INPUT:
        *(int *)data = 0;
        return 0;
    case VIDIOC_ENUMINPUT:
        memset(data, 0, sizeof(struct v4l2_input));
        return 0;
    case VIDIOC_ENUM_FMT:
        if (kind->index) return EINVAL;
        kind->pixelformat = V4L2_PIX_FMT_YUYV;
        return 0;
    case VIDIOC_S_FMT:
        width = format->fmt.pix.width, height = format->fmt.pix.height;
        /* fall through */
    case VIDIOC_G_FMT:
        format->fmt.pix.width = width, format->fmt.pix.height = height;
        format->fmt.pix.pixelformat = V4L2_PIX_FMT_YUYV;
        format->fmt.pix.field = V4L2_FIELD_NONE;
        format->fmt.pix.bytesperline = width * 2, format->fmt.pix.sizeimage = width * height * 2;
        return 0;
    case VIDIOC_S_PARM:
        rate = pace->parm.capture.timeperframe.denominator / pace->parm.capture.timeperframe.numerator;
        /* fall through */
    case VIDIOC_G_PARM:
        pace->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        pace->parm.capture.timeperframe.numerator = 1, pace->parm.capture.timeperframe.denominator = rate;
        return 0;
    case VIDIOC_REQBUFS:
        if (buffers->count > MOST) buffers->count = MOST;
        return 0;
    case VIDIOC_QUERYBUF:
        buffer->length = width * height * 2, buffer->m.offset = buffer->index * 4096;
        return 0;
    case VIDIOC_QBUF:
        queued[waiting++] = buffer->index;
        return 0;
    case VIDIOC_DQBUF: {
        long long at = began + ++taken * 1000000000LL / rate;
        struct timespec due = {at / 1000000000, at % 1000000000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        if (!plugged()) return ENODEV;
        buffer->index = queued[0];
        memmove(queued, queued + 1, --waiting * sizeof *queued);
        draw(memory[buffer->index]);
        shown++;
        buffer->timestamp.tv_sec = due.tv_sec, buffer->timestamp.tv_usec = due.tv_nsec / 1000;
        buffer->bytesused = width * height * 2, buffer->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC;
        return 0;
    }
    case VIDIOC_STREAMON:
        began = now(), taken = 0;
        return 0;
    case VIDIOC_STREAMOFF:
        return 0;
    }
    return ENOTTY;
}

int ioctl(int descriptor, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *data = va_arg(rest, void *);
    va_end(rest);
    if (descriptor < 0 || descriptor != camera) {
        int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
        return real(descriptor, request, data);
    }
    errno = answer(request, data);
    return errno ? -1 : 0;
}

/* The floor: what a C program needs to hold the same calls. One thread, one epoll, slots of a millisecond.
 *
 *     agent_client --port N --calls 200 --clip QUERY.s16 [--cycle-s 9] [--warm-s 3] [--seconds 10] [--hear]
 *
 * Each call sends a 20 ms chunk (pipecat protobuf, masked beforehand) each 20 ms on an absolute clock: the clip, then
 * silence to the end of the cycle, again and again; calls are spread over the slots and over the cycle. All that comes
 * is read and cut into messages; --hear also looks into them for the beginnings of answers. Prints one JSON line. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent_wire.h"

#define MOST_CALLS 8000
#define READ_ROOM (1 << 18)
#define SLOT_NS 1000000LL
#define SLOTS 20

struct call {
    int fd, loud;
    uint8_t *kept;
    uint64_t kept_bytes;
    int64_t due_ns, heard_ns, earliest_ns, loud_ns;
    uint32_t at; /* chunk of the cycle */
};

static struct call calls[MOST_CALLS];
static uint8_t reading[READ_ROOM];
static struct lateness sent_late, heard_late;
static uint64_t sent, heard, answers, blocked, lost;
static int counting, hearing;

static void hear(struct call *call, const struct ws_message *message, int64_t now_ns) {
    heard += counting;
    if (!hearing || message->opcode != 2) return;
    uint64_t size;
    const uint8_t *pcm = get_audio(message->payload, message->payload + message->length, &size);
    if (!pcm) return;
    call->heard_ns += (int64_t)(size / 2) * SAMPLE_NS;
    const int64_t began_ns = now_ns - call->heard_ns;
    if (!call->earliest_ns || began_ns < call->earliest_ns) call->earliest_ns = began_ns;
    if (counting) late_add(&heard_late, began_ns - call->earliest_ns);
    if (!loud_until(pcm, (int)(size / 2))) return;
    if (now_ns - call->loud_ns > 500000000LL) answers += counting;
    call->loud_ns = now_ns;
}

static void read_call(struct call *call) {
    memcpy(reading, call->kept, call->kept_bytes);
    const ssize_t n = recv(call->fd, reading + call->kept_bytes, READ_ROOM - call->kept_bytes, MSG_DONTWAIT);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) close(call->fd), call->fd = -1, lost++;
        return;
    }
    const int64_t now_ns = monotonic_ns();
    const uint64_t have = call->kept_bytes + n;
    uint64_t at = 0;
    struct ws_message message;
    while (ws_next(reading + at, have - at, &message)) hear(call, &message, now_ns), at += message.whole;
    call->kept_bytes = have - at;
    if (call->kept_bytes) {
        if (!(call->kept = realloc(call->kept, call->kept_bytes))) abort();
        memcpy(call->kept, reading + at, call->kept_bytes);
    }
}

static int dial(int port, const char *path, int number) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    static const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) return -1;
    char hello[512], answer[2048];
    const int n = snprintf(hello, sizeof hello,
                           "GET %s%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                           path, number, port);
    if (send(fd, hello, n, 0) != n) return -1;
    int have = 0;
    while (have < (int)sizeof answer - 1) { /* a byte at a time: what follows is a message */
        if (recv(fd, answer + have, 1, 0) != 1) return -1;
        answer[++have] = 0;
        if (have >= 4 && !memcmp(answer + have - 4, "\r\n\r\n", 4)) break;
    }
    return strstr(answer, " 101 ") ? fd : -1;
}

static int64_t cpu_ns(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }

int main(int count, char **words) {
    int port = 0, wanted = 1;
    double seconds = 10, warm_s = 3, cycle_s = 9;
    const char *clip = NULL, *path = "/ws/c-";
    static const struct option known[] = {{"port", 1, 0, 'p'},   {"calls", 1, 0, 'n'},  {"clip", 1, 0, 'c'},
                                          {"cycle-s", 1, 0, 'y'}, {"warm-s", 1, 0, 'w'}, {"seconds", 1, 0, 's'},
                                          {"path", 1, 0, 'a'},   {"hear", 0, 0, 'h'},   {0, 0, 0, 0}};
    for (int letter; (letter = getopt_long(count, words, "", known, NULL)) != -1;) switch (letter) {
            case 'p': port = atoi(optarg); break;
            case 'n': wanted = atoi(optarg); break;
            case 'c': clip = optarg; break;
            case 'y': cycle_s = atof(optarg); break;
            case 'w': warm_s = atof(optarg); break;
            case 's': seconds = atof(optarg); break;
            case 'a': path = optarg; break;
            case 'h': hearing = 1; break;
            default: return 2;
        }
    if (wanted < 1 || wanted > MOST_CALLS || !clip || !port) return 2;
    const struct rlimit files = {MOST_CALLS + 64, MOST_CALLS + 64};
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1000UL);

    const uint32_t cycle = (uint32_t)(cycle_s * RATE / CHUNK_SAMPLES);
    int16_t *samples = calloc(cycle, CHUNK_BYTES);
    FILE *file = fopen(clip, "rb");
    if (!file || !samples || !fread(samples, 2, (size_t)cycle * CHUNK_SAMPLES, file)) return 2;
    fclose(file);
    uint8_t **messages = calloc(cycle, sizeof *messages);
    int *sizes = calloc(cycle, sizeof *sizes);
    for (uint32_t i = 0; i < cycle; i++) {
        uint8_t body[CHUNK_BYTES + 64], mask[4];
        for (int k = 0; k < 4; k++) mask[k] = (uint8_t)rand();
        const int length = put_audio(body, 1, samples + (size_t)i * CHUNK_SAMPLES);
        messages[i] = malloc(length + 14);
        const int head = ws_head(messages[i], 2, length, mask);
        for (int k = 0; k < length; k++) messages[i][head + k] = body[k] ^ mask[k & 3];
        sizes[i] = head + length;
    }

    const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < wanted; i++) {
        struct call *call = &calls[i];
        if ((call->fd = dial(port, path, i)) < 0) {
            fprintf(stderr, "agent_client: call %d was not taken: %s\n", i, strerror(errno));
            return 1;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = call};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, call->fd, &event);
    }
    fprintf(stderr, "agent_client: all calls are up\n");

    /* Slot by slot: the calls of a slot are those whose number fits it. */
    const int64_t begin_ns = (monotonic_ns() / CHUNK_NS + 5) * CHUNK_NS;
    const int64_t count_ns = begin_ns + (int64_t)(warm_s * 1e9), end_ns = count_ns + (int64_t)(seconds * 1e9);
    for (int i = 0; i < wanted; i++) {
        calls[i].due_ns = begin_ns + i % SLOTS * SLOT_NS;
        calls[i].at = (uint32_t)((uint64_t)i * 7919 % cycle);
    }
    int64_t slot = 0, began_ns = 0, began_cpu_ns = 0, now_ns;
    static struct epoll_event events[1024];
    while ((now_ns = monotonic_ns()) < end_ns) {
        if (!counting && now_ns >= count_ns) counting = 1, began_ns = now_ns, began_cpu_ns = cpu_ns();
        for (; begin_ns + slot * SLOT_NS <= now_ns; slot++)
            for (int i = (int)(slot % SLOTS); i < wanted; i += SLOTS) {
                struct call *call = &calls[i];
                if (call->fd < 0) continue;
                const int size = sizes[call->at];
                if (send(call->fd, messages[call->at], size, MSG_NOSIGNAL | MSG_DONTWAIT) != size) blocked++;
                if (counting) late_add(&sent_late, monotonic_ns() - call->due_ns), sent++;
                call->at = (call->at + 1) % cycle;
                call->due_ns += CHUNK_NS;
            }
        const int64_t left_ns = begin_ns + slot * SLOT_NS - monotonic_ns();
        const struct timespec wait = {0, left_ns > 0 ? left_ns : 0};
        const int n = epoll_pwait2(epoll_fd, events, 1024, &wait, NULL);
        for (int i = 0; i < n; i++) read_call(events[i].data.ptr);
    }
    const int64_t took_ns = monotonic_ns() - began_ns, spent_ns = cpu_ns() - began_cpu_ns;
    char late[256], came[256];
    late_json(late, sizeof late, &sent_late), late_json(came, sizeof came, &heard_late);
    printf("{\"calls\": %d, \"seconds\": %.3f, \"cpu_share\": %.4f, \"sent\": %llu, \"heard\": %llu, \"answers\": %llu, "
           "\"blocked\": %llu, \"lost_calls\": %llu, \"sent_late_ms\": %s, \"heard_late_ms\": %s}\n",
           wanted, took_ns / 1e9, (double)spent_ns / took_ns, (unsigned long long)sent, (unsigned long long)heard,
           (unsigned long long)answers, (unsigned long long)blocked, (unsigned long long)lost, late, came);
    return 0;
}

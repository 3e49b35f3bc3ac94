/* A full-duplex speech model that costs little and tells the truth about itself: PersonaPlex's server side of the wire.
 *
 *     duplex_peer --pages FILE [--port N] [--trace FILE] ...        prints one line with its address
 *
 * One thread, one epoll. It accepts WebSocket sessions at any path, drops those whose query has no voice_prompt or no
 * text_prompt, and --prompt-ms after the 101 sends the handshake (0x00), OpusHead and OpusTags; what comes before it is
 * swallowed. From then on each chunk of the client's (CHUNK_PAGES Ogg pages of audio, 80 ms) is answered at once by one
 * of its own: silence, or the next of an answer, with a piece of text (0x02) every third. It decodes nothing: a chunk
 * that is, byte for byte, the one before it is silence, --hangover-chunks of them are the end of the user's turn, and
 * the answer begins with the --reply-chunks-th from the last of these on. So a client must repeat its silence as it is.
 * GET /figures, GET /forget: as paced_server.py.
 *
 * FILE (benchmarks/peers/duplex_pages.py writes it): u32 lengths before bytes, all little-endian: OpusHead's page,
 * OpusTags' page, a silent chunk; the number of answers; of each the place of its first voiced sample in its first
 * chunk, its number of chunks, these. Granule, sequence number and checksum of each page are the session's own.
 *
 * The truth, a JSON line an answer in --trace; instants are CLOCK_MONOTONIC nanoseconds:
 *     port            the client's
 *     onset_position  sample (24 kHz) of this session's stream that is the answer's first voiced one, before encoding
 *     onset_at        the same in its chunk; onset_write_ns: just before the write of that chunk
 *     user_recv_ns    the user's last chunk that was not silent came: the kernel's receive stamp, converted
 *     user_chunk      that chunk's number, from 0; chunks: how many chunks were heard and said with the onset's */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent_wire.h"
#include "ws_accept.h"

#define MOST_SESSIONS 8192
#define READ_ROOM (1 << 18)
#define REST_ROOM (1 << 16)
#define SPOKEN_CHUNK_NS 80000000LL
#define SPOKEN_CHUNK 1920      /* samples of 24 kHz */
#define CHUNK_PAGES 2          /* as sphn cuts them: 40 ms each */
#define PAGE_GRANULES 1920     /* of 48 kHz */
#define MOST_ANSWERS 16
#define CHUNK_ROOM 4096
#define PIECE_EVERY 3

struct payload {
    uint32_t length;
    uint8_t *bytes;
};

struct answer {
    uint32_t onset_at, chunks;
    struct payload *said;
};

enum state { FREE, OPENING, WAITING, TALKING };

struct session {
    enum state state;
    int fd, port;
    uint32_t generation;
    uint8_t *kept; /* bytes of a message not yet whole */
    uint64_t kept_bytes;
    uint8_t *rest; /* bytes the kernel did not take */
    uint64_t rest_bytes;
    /* what is heard */
    uint32_t heard, pages; /* whole chunks; pages of the next one */
    int64_t earliest_ns;   /* min over chunks of (received - media time): this client's clock at its best */
    uint8_t last[CHUNK_ROOM];
    uint64_t last_bytes;
    uint32_t alike; /* chunks in a row that were as the one before */
    int user_spoke;
    uint32_t user_chunk;
    int64_t user_recv_ns, before_recv_ns;
    /* what is said */
    uint32_t said, number; /* chunks, pages */
    const struct answer *answer;
    uint32_t answer_chunk, reply_in;
};

static struct {
    int port, prompt_ms, reply_chunks, hangover_chunks;
    const char *pages, *trace;
} asked = {.prompt_ms = 500, .reply_chunks = 2, .hangover_chunks = 3};

static struct session sessions[MOST_SESSIONS];
static struct { int64_t at_ns; uint32_t session, generation; } waiting[MOST_SESSIONS]; /* a ring: all wait as long */
static uint32_t waiting_first, waiting_count, open_sessions;
static struct payload head, tags, silence;
static struct answer answers[MOST_ANSWERS];
static uint32_t answer_count;
static int epoll_fd, listening;
static FILE *trace;
static uint8_t reading[READ_ROOM + 1];
static uint32_t crcs[256];
static int64_t wall_minus_monotonic_ns;
static volatile sig_atomic_t ending;
static uint64_t dice = 88172645463325252ULL;

/* since GET /forget */
static struct lateness heard_late, turnaround;
static uint64_t chunks_said, chunks_heard, answers_begun, talked_over, skipped, refused, swallowed;
static int64_t forgot_ns, forgot_cpu_ns;

static uint64_t roll(void) { return dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17; }

static int64_t cpu_ns(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }

/* ---- Ogg (RFC 3533) ---- */

static void make_crcs(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i << 24;
        for (int bit = 0; bit < 8; bit++) value = value << 1 ^ (value >> 31 ? 0x04c11db7 : 0);
        crcs[i] = value;
    }
}

static void put32(uint8_t *out, uint32_t value) {
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(value >> (8 * i));
}

/* Length of the page at `at`; 0 where there is none. */
static uint64_t page_length(const uint8_t *at, uint64_t have) {
    if (have < 27 || memcmp(at, "OggS", 4) || have < 27u + at[26]) return 0;
    uint64_t length = 27u + at[26];
    for (int i = 0; i < at[26]; i++) length += at[27 + i];
    return length <= have ? length : 0;
}

/* The session's own granules, numbers and checksums for the pages of a chunk. */
static void number_pages(struct session *session, uint8_t *at, uint64_t length) {
    for (uint64_t n; (n = page_length(at, length)); at += n, length -= n) {
        const uint64_t granule = session->number < 2 ? 0 : (session->number - 1) * (uint64_t)PAGE_GRANULES;
        put32(at + 6, (uint32_t)granule), put32(at + 10, (uint32_t)(granule >> 32));
        put32(at + 18, session->number++);
        put32(at + 22, 0);
        uint32_t crc = 0;
        for (uint64_t i = 0; i < n; i++) crc = crc << 8 ^ crcs[crc >> 24 ^ at[i]];
        put32(at + 22, crc);
    }
}

/* Pages with audio in a client's message. */
static uint32_t audio_pages(const uint8_t *at, uint64_t length) {
    uint32_t count = 0;
    for (uint64_t n; (n = page_length(at, length)); at += n, length -= n)
        count += n < 27u + at[26] + 4 || memcmp(at + 27 + at[26], "Opus", 4) != 0;
    return count;
}

/* ---- bytes out ---- */

static void hang_up(struct session *session) {
    if (session->state == FREE) return;
    open_sessions -= session->state == TALKING;
    free(session->kept), free(session->rest);
    close(session->fd);
    session->kept = session->rest = NULL;
    session->state = FREE;
    session->generation++;
}

static void put(struct session *session, const uint8_t *bytes, uint64_t n) {
    if (session->rest_bytes) {
        ssize_t took = send(session->fd, session->rest, session->rest_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (took > 0) memmove(session->rest, session->rest + took, session->rest_bytes -= took);
        if (session->rest_bytes + n > REST_ROOM) {
            skipped++;
            return;
        }
    }
    ssize_t took = session->rest_bytes ? 0 : send(session->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (took < 0) took = 0; /* a dead connection is noticed when it is read */
    if ((uint64_t)took == n) return;
    if (!session->rest && !(session->rest = malloc(REST_ROOM))) abort();
    memcpy(session->rest + session->rest_bytes, bytes + took, n - took);
    session->rest_bytes += n - took;
}

/* A message of pages, numbered; its length. */
static int put_pages(struct session *session, uint8_t *out, const struct payload *payload) {
    const int begin = ws_head(out, 2, payload->length + 1, NULL);
    out[begin] = 1;
    memcpy(out + begin + 1, payload->bytes, payload->length);
    number_pages(session, out + begin + 1, payload->length);
    return begin + 1 + (int)payload->length;
}

static void shake_hands(struct session *session) {
    uint8_t out[3 * (CHUNK_ROOM + 16)] = {0x82, 1, 0};
    int length = 3;
    length += put_pages(session, out + length, &head);
    length += put_pages(session, out + length, &tags);
    put(session, out, length);
    session->state = TALKING;
    open_sessions++;
}

/* ---- a chunk ---- */

static void note_answer(const struct session *session, int64_t onset_write_ns) {
    const struct answer *answer = session->answer;
    if (trace)
        fprintf(trace,
                "{\"port\": %d, \"onset_position\": %llu, \"onset_at\": %u, \"onset_write_ns\": %lld, "
                "\"user_recv_ns\": %lld, \"user_chunk\": %u, \"chunks\": %u}\n",
                session->port, (unsigned long long)session->said * SPOKEN_CHUNK + answer->onset_at, answer->onset_at,
                (long long)onset_write_ns, (long long)session->user_recv_ns, session->user_chunk, session->heard);
}

static void say(struct session *session, int64_t recv_ns) {
    const struct payload *payload = &silence;
    int first = 0, piece = 0;
    if (!session->answer && session->reply_in && !--session->reply_in) {
        session->answer = &answers[roll() % answer_count], session->answer_chunk = 0;
        answers_begun++, first = 1;
    }
    if (session->answer) {
        payload = &session->answer->said[session->answer_chunk];
        piece = session->answer_chunk % PIECE_EVERY == 0;
    }
    uint8_t out[CHUNK_ROOM + 64];
    int length = put_pages(session, out, payload);
    if (piece) {
        static const uint8_t word[] = {0x82, 6, 2, ' ', 'w', 'o', 'r', 'd'};
        memcpy(out + length, word, sizeof word), length += sizeof word;
    }
    const int64_t before_ns = monotonic_ns();
    put(session, out, length);
    late_add(&turnaround, before_ns - recv_ns);
    if (first) note_answer(session, before_ns);
    session->said++, chunks_said++;
    if (session->answer && ++session->answer_chunk == session->answer->chunks) session->answer = NULL;
}

static void hear_chunk(struct session *session, const uint8_t *bytes, uint64_t length, int64_t recv_ns) {
    const int64_t began_ns = recv_ns - ++session->heard * SPOKEN_CHUNK_NS;
    chunks_heard++;
    if (!session->earliest_ns || began_ns < session->earliest_ns) session->earliest_ns = began_ns;
    /* A second to find the client's clock, then: how much later than at its best. */
    if (session->heard > 12) late_add(&heard_late, began_ns - session->earliest_ns);
    const int same = length == session->last_bytes && !memcmp(session->last, bytes, length);
    session->last_bytes = length <= CHUNK_ROOM ? length : 0;
    if (!same) memcpy(session->last, bytes, session->last_bytes);
    session->alike = same ? session->alike + 1 : 0;
    if (!same && session->heard > 2) {
        session->user_spoke = 1, session->reply_in = 0;
        talked_over += session->answer != NULL;
        /* If this one is the first of silence, the user's last was before it. */
        session->user_chunk = session->heard - 2, session->user_recv_ns = session->before_recv_ns;
    } else if (session->user_spoke && (int)session->alike == asked.hangover_chunks) {
        session->user_spoke = 0;
        session->reply_in = asked.reply_chunks;
    }
    session->before_recv_ns = recv_ns;
    say(session, recv_ns);
}

static void hear(struct session *session, const uint8_t *bytes, uint64_t length, int64_t recv_ns) {
    if (session->state != TALKING) {
        swallowed++;
        return;
    }
    session->pages += audio_pages(bytes, length);
    for (; session->pages >= CHUNK_PAGES; session->pages -= CHUNK_PAGES) hear_chunk(session, bytes, length, recv_ns);
}

/* ---- what comes in ---- */

static void answer_figures(struct session *session, int forget) {
    static char body[4096], late[256], around[256];
    late_json(late, sizeof late, &heard_late);
    late_json(around, sizeof around, &turnaround);
    const int64_t now_ns = monotonic_ns(), spent_ns = cpu_ns();
    int n = snprintf(body, sizeof body,
                     "{\"sessions\": %u, \"seconds\": %.3f, \"cpu_share\": %.4f, \"chunks_said\": %llu, "
                     "\"chunks_heard\": %llu, \"answers\": %llu, \"talked_over\": %llu, \"skipped\": %llu, "
                     "\"refused\": %llu, \"swallowed\": %llu, \"heard_late_ms\": %s, \"turnaround_ms\": %s}",
                     open_sessions, (now_ns - forgot_ns) / 1e9, (double)(spent_ns - forgot_cpu_ns) / (now_ns - forgot_ns),
                     (unsigned long long)chunks_said, (unsigned long long)chunks_heard, (unsigned long long)answers_begun,
                     (unsigned long long)talked_over, (unsigned long long)skipped, (unsigned long long)refused,
                     (unsigned long long)swallowed, late, around);
    if (forget) {
        memset(&heard_late, 0, sizeof heard_late), memset(&turnaround, 0, sizeof turnaround);
        chunks_said = chunks_heard = answers_begun = talked_over = skipped = refused = swallowed = 0;
        forgot_ns = now_ns, forgot_cpu_ns = spent_ns;
    }
    if (trace) fflush(trace);
    char top[160];
    int h = snprintf(top, sizeof top,
                     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", n);
    put(session, (uint8_t *)top, h);
    put(session, (uint8_t *)body, n);
}

/* Whether the request's query names a parameter and gives it a value. */
static int has(const char *request, const char *name) {
    const char *end = strpbrk(request, "\r\n"), *found = strstr(request, name);
    return found && found < end && found[strlen(name)] == '=' && !strchr("& \r", found[strlen(name) + 1]);
}

/* The request, once it is whole; how many bytes it took, 0 for more needed, -1 to hang up. */
static int64_t open_session(struct session *session, uint8_t *bytes, uint64_t n) {
    bytes[n] = 0;
    char *text = (char *)bytes, *end = strstr(text, "\r\n\r\n"), *key = strcasestr(text, "sec-websocket-key:");
    if (!end) return n > 16384 ? -1 : 0;
    if (!key || key > end) {
        answer_figures(session, !strncmp(text, "GET /forget", 11));
        return -1;
    }
    char out[256];
    const int length = accept_reply(key + 18, out, sizeof out);
    if (!length) return -1;
    put(session, (uint8_t *)out, length);
    if (!has(text, "voice_prompt") || !has(text, "text_prompt")) { /* no close frame: 1006 at the client */
        refused++;
        return -1;
    }
    session->state = WAITING;
    const uint32_t at = (waiting_first + waiting_count++) % MOST_SESSIONS;
    waiting[at].at_ns = monotonic_ns() + asked.prompt_ms * 1000000LL;
    waiting[at].session = (uint32_t)(session - sessions), waiting[at].generation = session->generation;
    return end + 4 - text;
}

/* Bytes of a session, in `reading`. Returns 0 where it is over. */
static int take(struct session *session, uint64_t n, int64_t recv_ns) {
    uint64_t at = 0;
    if (session->state == OPENING) {
        int64_t used = open_session(session, reading, n);
        if (used < 0) return 0;
        at = (uint64_t)used;
    }
    struct ws_message message;
    while (session->state > OPENING && ws_next(reading + at, n - at, &message)) {
        at += message.whole;
        if (message.opcode == 8) {
            uint8_t out[140];
            const int body = message.length > 125 ? 0 : (int)message.length, begin = ws_head(out, 8, body, NULL);
            memcpy(out + begin, message.payload, body);
            put(session, out, begin + body);
            return 0;
        }
        if (message.opcode == 2 && message.length && message.payload[0] == 1)
            hear(session, message.payload + 1, message.length - 1, recv_ns);
    }
    session->kept_bytes = n - at;
    if (session->kept_bytes) {
        uint8_t *kept = realloc(session->kept, session->kept_bytes);
        if (!kept) abort();
        memcpy(kept, reading + at, session->kept_bytes);
        session->kept = kept;
    }
    return 1;
}

static void read_session(struct session *session) {
    const uint64_t kept = session->kept_bytes;
    if (kept >= READ_ROOM / 2) {
        hang_up(session);
        return;
    }
    char control[128];
    struct iovec room = {reading + kept, READ_ROOM - kept};
    struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(session->fd, &message, MSG_DONTWAIT);
    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) hang_up(session);
        return;
    }
    int64_t recv_ns = monotonic_ns();
    for (struct cmsghdr *note = CMSG_FIRSTHDR(&message); note; note = CMSG_NXTHDR(&message, note))
        if (note->cmsg_level == SOL_SOCKET && note->cmsg_type == SO_TIMESTAMPNS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(note), sizeof stamp);
            recv_ns = stamp.tv_sec * 1000000000LL + stamp.tv_nsec - wall_minus_monotonic_ns;
        }
    if (kept) memcpy(reading, session->kept, kept);
    if (!take(session, kept + n, recv_ns)) hang_up(session);
}

static void accept_sessions(void) {
    static const int one = 1;
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    for (int fd; (fd = accept4(listening, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        if (fd >= MOST_SESSIONS) {
            close(fd);
            continue;
        }
        struct session *session = &sessions[fd];
        const uint32_t generation = session->generation;
        memset(session, 0, sizeof *session);
        session->generation = generation, session->fd = fd, session->state = OPENING, session->port = ntohs(from.sin_port);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* ---- the loop ---- */

static void anchor_clocks(void) {
    int64_t best_ns = INT64_MAX;
    for (int i = 0; i < 3; i++) {
        const int64_t before_ns = monotonic_ns(), wall_ns = clock_ns(CLOCK_REALTIME), after_ns = monotonic_ns();
        if (after_ns - before_ns < best_ns)
            best_ns = after_ns - before_ns, wall_minus_monotonic_ns = wall_ns - (before_ns + after_ns) / 2;
    }
}

static void serve(void) {
    static struct epoll_event events[1024];
    while (!ending) {
        const int n = epoll_wait(epoll_fd, events, 1024, waiting_count ? 1 : 20);
        anchor_clocks();
        for (; waiting_count && waiting[waiting_first].at_ns <= monotonic_ns(); waiting_count--) {
            struct session *session = &sessions[waiting[waiting_first].session];
            if (session->state == WAITING && session->generation == waiting[waiting_first].generation) shake_hands(session);
            waiting_first = (waiting_first + 1) % MOST_SESSIONS;
        }
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listening)
                accept_sessions();
            else if (sessions[events[i].data.fd].state != FREE)
                read_session(&sessions[events[i].data.fd]);
        }
    }
}

static void fail(const char *why, const char *what) {
    fprintf(stderr, "duplex_peer: %s: %s\n", why, what);
    exit(2);
}

static uint32_t read32(FILE *file) {
    uint8_t bytes[4];
    if (fread(bytes, 1, 4, file) != 4) fail(asked.pages, "ends too soon");
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static struct payload read_payload(FILE *file) {
    struct payload payload = {.length = read32(file)};
    if (payload.length > CHUNK_ROOM) fail(asked.pages, "a chunk of more than 4,096 bytes");
    payload.bytes = malloc(payload.length);
    if (!payload.bytes || fread(payload.bytes, 1, payload.length, file) != payload.length) fail(asked.pages, "ends too soon");
    return payload;
}

static void load_pages(void) {
    FILE *file = fopen(asked.pages, "rb");
    if (!file) fail(asked.pages, strerror(errno));
    head = read_payload(file), tags = read_payload(file), silence = read_payload(file);
    answer_count = read32(file);
    if (!answer_count || answer_count > MOST_ANSWERS) fail(asked.pages, "1 to 16 answers are needed");
    for (uint32_t i = 0; i < answer_count; i++) {
        answers[i].onset_at = read32(file), answers[i].chunks = read32(file);
        answers[i].said = calloc(answers[i].chunks, sizeof *answers[i].said);
        for (uint32_t k = 0; k < answers[i].chunks; k++) answers[i].said[k] = read_payload(file);
    }
    fclose(file);
}

static void on_signal(int number) {
    (void)number;
    ending = 1;
}

int main(int count, char **words) {
    static const struct option known[] = {{"port", 1, 0, 'p'},         {"pages", 1, 0, 'a'},
                                          {"trace", 1, 0, 't'},        {"prompt-ms", 1, 0, 'm'},
                                          {"reply-chunks", 1, 0, 'r'}, {"hangover-chunks", 1, 0, 'h'},
                                          {0, 0, 0, 0}};
    for (int letter; (letter = getopt_long(count, words, "", known, NULL)) != -1;) switch (letter) {
            case 'p': asked.port = atoi(optarg); break;
            case 'a': asked.pages = optarg; break;
            case 't': asked.trace = optarg; break;
            case 'm': asked.prompt_ms = atoi(optarg); break;
            case 'r': asked.reply_chunks = atoi(optarg); break;
            case 'h': asked.hangover_chunks = atoi(optarg); break;
            default: return 2;
        }
    if (!asked.pages) fail("--pages", "needed: what duplex_pages.py writes");
    if (asked.reply_chunks < 1 || asked.hangover_chunks < 1) fail("--reply-chunks, --hangover-chunks", "1 or more");
    make_crcs();
    load_pages();
    if (asked.trace) {
        trace = fopen(asked.trace, "wb");
        if (!trace) fail(asked.trace, strerror(errno));
        setvbuf(trace, NULL, _IOFBF, 32 << 20); /* the disk is for quiet moments */
    }
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGTERM, &act, NULL), sigaction(SIGINT, &act, NULL);
    const struct rlimit files = {MOST_SESSIONS, MOST_SESSIONS};
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1000UL);
    listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    static const int one = 1;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)asked.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listening, (struct sockaddr *)&address, size) || listen(listening, 4096)) fail("listen", strerror(errno));
    getsockname(listening, (struct sockaddr *)&address, &size);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listening, &event);
    forgot_ns = monotonic_ns(), forgot_cpu_ns = cpu_ns();
    printf("duplex_peer: ready on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    serve();
    if (trace) fclose(trace);
    return 0;
}

/* A DNS client that stub resolvers and probes are measured with: what dnsperf cannot be told to do.
 *
 *   client walk  SOURCE SERVER PORT NAMES SECONDS SLOTS SEARCH…   walks the search list as glibc does with ndots:5
 *   client paced SOURCE SERVER PORT NAMES SECONDS RATE            a query every 1/RATE seconds, each one timed
 *
 * SOURCE is the address to send from, "-" for any. NAMES is a file with a name on each line. Out: one line of JSON.
 *
 * walk: SLOTS lookups at once. Each sends A and AAAA together, waits for both, and goes on to the next candidate where neither has an
 * address: the domains of the search list first, the name as it stands last. A lookup that finds no address at all is a failure.
 * paced: the times are absolute, so a slow reply does not slow the questions; what has no reply a second after the end is lost.
 *
 * Build: cc -O2 -o client client.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CANDIDATES 16
#define SLOTS 256
#define PATIENCE 5.0 /* seconds until a query is sent again, as in resolv.conf's default */

typedef struct {
    uint8_t wire[256];
    int size;
} Name;

static char **names;
static size_t count;
static int sock;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void read_names(const char *path) {
    FILE *file = fopen(path, "r");
    char line[512];
    size_t room = 0;
    if (!file) fail(path);
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, " \n")] = 0;
        if (!line[0]) continue;
        if (count == room) names = realloc(names, (room = room ? room * 2 : 1024) * sizeof *names);
        names[count++] = strdup(line);
    }
    fclose(file);
    if (!count) fail("no names");
}

/* Appends the labels of `text` to a name in wire form, without the root's zero octet. */
static void add(Name *name, const char *text) {
    while (*text) {
        size_t size = strcspn(text, ".");
        if (!size || size > 63 || name->size + size + 2 > 255) fail("a name is too long");
        name->wire[name->size++] = size;
        memcpy(name->wire + name->size, text, size);
        name->size += size;
        text += size;
        if (*text == '.') text++;
    }
}

static int query(uint8_t *out, uint16_t id, const Name *name, uint16_t type) {
    static const uint8_t head[] = {1, 0, 0, 1, 0, 0, 0, 0, 0, 0}; /* RD, one question */
    out[0] = id >> 8, out[1] = id;
    memcpy(out + 2, head, sizeof head);
    memcpy(out + 12, name->wire, name->size);
    uint8_t *end = out + 12 + name->size;
    *end++ = 0, *end++ = type >> 8, *end++ = type, *end++ = 0, *end++ = 1;
    return end - out;
}

static void say(uint16_t id, const Name *name, uint16_t type) {
    uint8_t out[320];
    int size = query(out, id, name, type);
    /* An error of an earlier packet is told here once; an address that the node gave up is a query lost, and counted as one. */
    for (int attempt = 0; attempt < 3 && send(sock, out, size, 0) < 0; attempt++)
        if (errno != EINTR && errno != ECONNREFUSED && errno != EAGAIN && errno != ENETUNREACH && errno != EHOSTUNREACH) fail("send");
}

/* Whether there is a reply: its ID, rcode and number of answers. */
static int hear(uint16_t *id, int *rcode, int *answers) {
    uint8_t in[4096];
    ssize_t size = recv(sock, in, sizeof in, 0);
    if (size < 12) return 0;
    *id = in[0] << 8 | in[1], *rcode = in[3] & 15, *answers = in[6] << 8 | in[7];
    return 1;
}

typedef struct {
    size_t name;
    int candidate, waiting, found; /* waiting: bit 0 for A, bit 1 for AAAA */
    uint16_t turn;
    double since, sent;
} Lookup;

static Lookup lookups[SLOTS];
static char **search;
static int domains;

static void ask(int slot) {
    Lookup *l = &lookups[slot];
    Name name = {.size = 0};
    add(&name, names[l->name]);
    if (l->candidate < domains) add(&name, search[l->candidate]);
    l->turn++, l->waiting = 3, l->found = 0, l->sent = now();
    for (int kind = 0; kind < 2; kind++) say((uint16_t)(l->turn << 9 | slot << 1 | kind), &name, kind ? 28 : 1);
}

static int walk(double seconds, int slots) {
    uint64_t done = 0, failed = 0, lost = 0, asked = 0;
    size_t next = 0;
    double began = now(), total = 0, at = began;
    if (slots > SLOTS) slots = SLOTS;
    for (int slot = 0; slot < slots; slot++) {
        lookups[slot] = (Lookup){.name = next++ % count, .since = now()};
        ask(slot), asked += 2;
    }
    while (at < began + seconds) {
        uint16_t id;
        int rcode, answers;
        if (!hear(&id, &rcode, &answers)) { /* a tenth of a second of silence */
            at = now();
            for (int slot = 0; slot < slots; slot++)
                if (at - lookups[slot].sent > PATIENCE) lost++, asked += 2, ask(slot);
            continue;
        }
        int slot = id >> 1 & 255, bit = 1 << (id & 1);
        Lookup *l = &lookups[slot];
        if (slot >= slots || (l->turn & 127) != id >> 9 || !(l->waiting & bit)) continue; /* late, or not ours */
        l->waiting &= ~bit;
        if (rcode == 0 && answers) l->found = 1;
        if (l->waiting) continue;
        at = now();
        if (!l->found && l->candidate++ < domains) {
            ask(slot), asked += 2;
            continue;
        }
        failed += !l->found, done++, total += at - l->since;
        *l = (Lookup){.name = next++ % count, .since = at, .turn = l->turn};
        ask(slot), asked += 2;
    }
    double took = now() - began;
    printf("{\"names\": %.1f, \"done\": %lu, \"failed\": %lu, \"lost\": %lu, \"queries\": %lu, \"mean_us\": %.1f}\n", done / took, done,
           failed, lost, asked, done ? total / done * 1e6 : 0);
    return 0;
}

static int smaller(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static int paced(double seconds, double rate) {
    static double sent[65536];
    size_t wanted = seconds * rate, asked = 0, heard = 0, wrong = 0;
    float *times = malloc((wanted + 1) * sizeof *times);
    double began = now(), sum = 0;
    prctl(PR_SET_TIMERSLACK, 1);
    for (;;) {
        uint16_t id;
        int rcode, answers;
        double at = now(), due = began + asked / rate;
        int late = asked < wanted && at >= due;
        if (late) {
            Name name = {.size = 0};
            add(&name, names[asked % count]);
            sent[asked & 65535] = now();
            say(asked++ & 65535, &name, 1);
        }
        if (asked == wanted && (heard == asked || at > began + seconds + 1)) break;
        /* Behind the time: what has come is read all the same, else the socket's buffer would lose it. */
        double pause = late ? 0 : asked < wanted ? due - at : 0.01;
        struct timespec limit = {.tv_nsec = (long)(pause * 1e9)};
        struct pollfd ready = {.fd = sock, .events = POLLIN};
        if (ppoll(&ready, 1, &limit, NULL) <= 0 || !hear(&id, &rcode, &answers) || !sent[id]) continue;
        double took = now() - sent[id];
        sent[id] = 0, sum += took, times[heard++] = took;
        wrong += rcode != 0 || !answers;
    }
    qsort(times, heard, sizeof *times, smaller);
#define SHARE(x) (heard ? times[(size_t)((heard - 1) * (x))] * 1e6 : 0)
    printf("{\"asked\": %zu, \"lost\": %zu, \"wrong\": %zu, \"mean_us\": %.1f, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, "
           "\"p999_us\": %.1f, \"max_us\": %.1f}\n",
           asked, asked - heard, wrong, heard ? sum / heard * 1e6 : 0, SHARE(0.5), SHARE(0.9), SHARE(0.99), SHARE(0.999), SHARE(1.0));
    return 0;
}

static void connected(const char *source, const char *server, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)}, from = {.sin_family = AF_INET};
    int size = 4 << 20;
    struct timeval patience = {.tv_usec = 100000};
    sock = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    inet_pton(AF_INET, server, &to.sin_addr);
    if (strcmp(source, "-")) {
        inet_pton(AF_INET, source, &from.sin_addr);
        if (bind(sock, (struct sockaddr *)&from, sizeof from)) fail("bind");
    }
    if (connect(sock, (struct sockaddr *)&to, sizeof to)) fail("connect");
}

int main(int argc, char **argv) {
    if (argc < 8) {
        fprintf(stderr, "usage: client walk|paced SOURCE SERVER PORT NAMES SECONDS SLOTS|RATE [SEARCH…]\n");
        return 2;
    }
    connected(argv[2], argv[3], atoi(argv[4]));
    read_names(argv[5]);
    search = argv + 8, domains = argc - 8;
    if (domains >= CANDIDATES) domains = CANDIDATES - 1;
    return strcmp(argv[1], "walk") ? paced(atof(argv[6]), atof(argv[7])) : walk(atof(argv[6]), atoi(argv[7]));
}

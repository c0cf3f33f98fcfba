/* Both ends of a UDP relay that is measured: as little work as possible beside the datagrams.
 *
 *   udp echo ADDRESS PORT                                   sends every datagram back, until its standard input ends
 *   udp ask ADDRESS PORT SESSIONS SECONDS OCTETS            one request under way in each session, the next one when the reply is there
 *
 * A session is a socket of its own. A request without a reply after a tenth of a second is sent again and counted as lost. Out of `ask`:
 * one line of JSON; times are in microseconds, from a sample of at most a million.
 *
 * Build: cc -O2 -o udp udp.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define LARGEST 65536
#define SESSIONS 4096
#define SAMPLES 1000000
#define PATIENCE 0.1

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static struct addrinfo *address(const char *host, const char *port) {
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
    if (getaddrinfo(host, port, &hints, &found)) fail("getaddrinfo");
    return found;
}

static int echo(const char *host, const char *port) {
    static char buffers[BATCH][LARGEST];
    struct sockaddr_storage peers[BATCH];
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    struct addrinfo *here = address(host, port);
    int room = 8 << 20, sock = socket(here->ai_family, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    if (sock < 0 || bind(sock, here->ai_addr, here->ai_addrlen)) fail("bind");
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd ready[] = {{.fd = sock, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0) fail("poll");
        if (ready[1].revents) return 0;
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){buffers[i], LARGEST};
            messages[i].msg_hdr = (struct msghdr){.msg_name = &peers[i], .msg_namelen = sizeof peers[i], .msg_iov = &parts[i], .msg_iovlen = 1};
        }
        int count = recvmmsg(sock, messages, BATCH, 0, NULL);
        for (int i = 0; i < count; i++) parts[i].iov_len = messages[i].msg_len;
        for (int sent = 0; sent < count;) {
            int some = sendmmsg(sock, messages + sent, count - sent, 0);
            sent += some > 0 ? some : 1;
        }
    }
}

static float samples[SAMPLES];

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int ask(const char *host, const char *port, int sessions, double seconds, int octets) {
    static int socks[SESSIONS];
    static double sent[SESSIONS];
    static char words[LARGEST], heard[LARGEST];
    struct addrinfo *there = address(host, port);
    int poller = epoll_create1(0);
    uint64_t exchanges = 0, lost = 0, wrong = 0;
    memset(words, 'x', sizeof words);
    if (sessions > SESSIONS) sessions = SESSIONS;
    for (int i = 0; i < sessions; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        socks[i] = socket(there->ai_family, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (socks[i] < 0 || connect(socks[i], there->ai_addr, there->ai_addrlen)) fail("connect");
        if (epoll_ctl(poller, EPOLL_CTL_ADD, socks[i], &event)) fail("epoll_ctl");
        memcpy(words, &i, sizeof i);
        sent[i] = now();
        send(socks[i], words, octets, 0);
    }
    double began = now(), at = began, looked = began;
    while (at < began + seconds) {
        struct epoll_event events[BATCH];
        int count = epoll_wait(poller, events, BATCH, 20);
        at = now();
        for (int e = 0; e < count; e++) {
            int i = events[e].data.u32;
            ssize_t size = recv(socks[i], heard, sizeof heard, 0);
            if (size < 0) continue; /* an ICMP error; the request is sent again below */
            if (size != octets || memcmp(heard, &i, sizeof i)) wrong++;
            if (exchanges < SAMPLES) samples[exchanges] = (at - sent[i]) * 1e6;
            exchanges++;
            memcpy(words, &i, sizeof i);
            sent[i] = at;
            send(socks[i], words, octets, 0);
        }
        if (at - looked < PATIENCE) continue;
        looked = at;
        for (int i = 0; i < sessions; i++)
            if (at - sent[i] > PATIENCE) {
                lost++, sent[i] = at;
                memcpy(words, &i, sizeof i);
                send(socks[i], words, octets, 0);
            }
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    uint64_t sampled = exchanges < SAMPLES ? exchanges : SAMPLES;
    qsort(samples, sampled, sizeof *samples, by_size);
    printf("{\"exchanges\": %lu, \"seconds\": %.3f, \"lost\": %lu, \"wrong\": %lu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"cpu_s\": %.3f}\n",
           exchanges, at - began, lost, wrong, sampled ? samples[sampled / 2] : 0, sampled ? samples[sampled * 99 / 100] : 0, cpu);
    return 0;
}

int main(int count, char **words) {
    prctl(PR_SET_PDEATHSIG, 9);
    if (count == 4 && !strcmp(words[1], "echo")) return echo(words[2], words[3]);
    if (count == 7 && !strcmp(words[1], "ask")) return ask(words[2], words[3], atoi(words[4]), atof(words[5]), atoi(words[6]));
    fputs("usage: see the top of udp.c\n", stderr);
    return 2;
}

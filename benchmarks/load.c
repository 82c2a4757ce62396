/* A load server that is no client's limit: one thread, epoll, streams rendered before it starts.
 *
 * What it sends comes on standard input, whose end ends it:
 *
 *     fact PATH SIZE\n BYTES               the whole answer to a GET
 *     stream TOKENS PIECES\n               the answer to a POST that asks for so many tokens: its head and its events,
 *         and PIECES times SIZE\n BYTES        each sent when it is due, or all at once
 *     serve\n
 *
 * Then it prints its port. A POST says "max_tokens", and in "content" how many milliseconds the pieces are apart.
 * GET /served tells, and forgets, how late pieces were sent; and how much CPU the server took so far.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { FDS = 8192, ANSWERS = 64, REQUEST = 1 << 16, SLOTS = 100000, SLOT_NS = 10000 };

struct answer {
    char path[256];
    long tokens;
    char *bytes;
    size_t *ends; /* of the pieces, in bytes */
    long pieces;
};

struct connection {
    char data[REQUEST + 1];
    size_t size;
    struct answer *answer; /* being sent, or NULL */
    size_t sent, due;      /* bytes */
    long piece;            /* pieces that are due */
    int timer;             /* 0: none */
    int64_t start, gap;    /* ns */
};

static struct answer answers[ANSWERS];
static struct connection *connections[FDS]; /* by socket; an event that comes late for a reused number does no harm */
static int owner[FDS];                      /* the socket of a timer */
static long late[SLOTS + 1], pieces_sent;   /* how many pieces were so late */
static int epoll;

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void watch(int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (fd >= FDS || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        perror("watch"), exit(1);
}

static void stop_timer(struct connection *connection)
{
    if (connection->timer) {
        owner[connection->timer] = 0;
        close(connection->timer);
        connection->timer = 0;
    }
}

static void hang_up(int fd)
{
    stop_timer(connections[fd]);
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

/* Milliseconds that a share of the pieces was late at most. */
static double late_ms(double share)
{
    long before = 0, slot = 0;
    while (slot < SLOTS && (before += late[slot]) < share * pieces_sent)
        slot++;
    return slot * (SLOT_NS / 1e6);
}

static struct answer *served(void)
{
    static char bytes[512], body[256];
    static size_t end;
    static struct answer answer = {.bytes = bytes, .ends = &end, .pieces = 1};
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec;
    cpu += (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    int size = sprintf(body, "{\"cpu_s\": %.6f, \"paced\": %ld, \"late_p50_ms\": %.2f, \"late_p99_ms\": %.2f}",
                       cpu, pieces_sent, late_ms(0.5), late_ms(0.99));
    memset(late, 0, sizeof late);
    pieces_sent = 0;
    end = sprintf(bytes, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, body);
    return &answer;
}

static double number_after(const char *text, const char *name)
{
    const char *found = strstr(text, name);
    return found ? strtod(found + strcspn(found, "0123456789"), NULL) : -1;
}

static struct answer *answer_to(const char *head, const char *body)
{
    static char missing[] = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    static size_t end = sizeof missing - 1;
    static struct answer none = {.bytes = missing, .ends = &end, .pieces = 1};
    const char *path = head + strcspn(head, " ");
    path += strspn(path, " ");
    size_t size = strcspn(path, " ");
    int post = !strncmp(head, "POST ", 5);
    long tokens = post ? number_after(body, "\"max_tokens\"") : 0;
    if (!post && size == 7 && !strncmp(path, "/served", size))
        return served();
    for (struct answer *answer = answers; answer->bytes; answer++)
        if (post ? answer->tokens == tokens : strlen(answer->path) == size && !strncmp(answer->path, path, size))
            return answer;
    return &none;
}

/* Send what is due and the socket takes. */
static void pump(int fd)
{
    struct connection *connection = connections[fd];
    while (connection->answer && connection->sent < connection->due) {
        const char *rest = connection->answer->bytes + connection->sent;
        ssize_t size = send(fd, rest, connection->due - connection->sent, MSG_NOSIGNAL);
        if (size < 0) {
            if (errno != EAGAIN)
                hang_up(fd);
            return;
        }
        connection->sent += size;
    }
    if (connection->answer && connection->sent == connection->answer->ends[connection->answer->pieces - 1]) {
        stop_timer(connection);
        connection->answer = NULL;
    }
}

static void start(int fd, struct answer *answer, double gap_ms)
{
    struct connection *connection = connections[fd];
    int paced = answer->tokens && gap_ms > 0;
    connection->answer = answer;
    connection->sent = 0;
    connection->piece = paced ? 1 : answer->pieces; /* the head is due at once */
    connection->due = answer->ends[connection->piece - 1];
    if (paced) {
        connection->gap = gap_ms * 1e6;
        connection->start = now();
        struct timespec gap = {connection->gap / 1000000000LL, connection->gap % 1000000000LL};
        struct itimerspec every = {.it_interval = gap, .it_value = gap};
        connection->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        watch(connection->timer, EPOLLIN);
        owner[connection->timer] = fd;
        timerfd_settime(connection->timer, 0, &every, NULL);
    }
    pump(fd);
}

static void tick(int timer)
{
    int fd = owner[timer];
    struct connection *connection = connections[fd];
    uint64_t expired;
    if (read(timer, &expired, sizeof expired) < 0)
        return;
    int64_t passed = now() - connection->start;
    for (; expired && connection->piece < connection->answer->pieces; expired--) {
        int64_t slot = (passed - connection->piece++ * connection->gap) / SLOT_NS;
        late[slot < 0 ? 0 : slot > SLOTS ? SLOTS : slot]++;
        pieces_sent++;
    }
    connection->due = connection->answer->ends[connection->piece - 1];
    pump(fd);
}

/* Read, and answer a request when it is whole. */
static void hear(int fd)
{
    struct connection *connection = connections[fd];
    for (;;) {
        ssize_t size = recv(fd, connection->data + connection->size, REQUEST - connection->size, 0);
        if (size < 0 && errno == EAGAIN)
            break;
        if (size <= 0) {
            hang_up(fd);
            return;
        }
        connection->size += size;
    }
    connection->data[connection->size] = 0;
    char *body = strstr(connection->data, "\r\n\r\n"), *length = strcasestr(connection->data, "\r\ncontent-length:");
    if (!body || connection->answer)
        return;
    body += 4;
    size_t wanted = length && length < body ? strtoul(length + 17, NULL, 10) : 0;
    if (connection->size < body - connection->data + wanted)
        return;
    connection->size = 0;
    start(fd, answer_to(connection->data, body), number_after(body, "\"content\""));
}

static void welcome(int listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(fd, EPOLLIN | EPOLLOUT | EPOLLET);
        connections[fd] = calloc(1, sizeof **connections);
    }
}

/* One more piece of an answer. */
static void read_piece(struct answer *answer, size_t size)
{
    size_t before = answer->pieces ? answer->ends[answer->pieces - 1] : 0;
    answer->bytes = realloc(answer->bytes, before + size);
    answer->ends[answer->pieces++] = before + size;
    if (fread(answer->bytes + before, 1, size, stdin) != size)
        exit(1);
}

static void read_answers(void)
{
    char kind[16];
    size_t size;
    long pieces;
    for (struct answer *answer = answers; scanf("%15s", kind) == 1 && strcmp(kind, "serve"); answer++) {
        if (answer == answers + ANSWERS - 1)
            exit(1);
        if (!strcmp(kind, "fact")) {
            answer->ends = malloc(sizeof size);
            if (scanf("%255s %zu%*1[\n]", answer->path, &size) == 2)
                read_piece(answer, size);
        } else if (scanf("%ld %ld", &answer->tokens, &pieces) == 2) {
            answer->ends = malloc(pieces * sizeof size);
            while (answer->pieces < pieces && scanf("%zu%*1[\n]", &size) == 1)
                read_piece(answer, size);
        }
    }
}

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct epoll_event events[256];
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    read_answers();
    epoll = epoll_create1(0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024))
        perror("listen"), exit(1);
    getsockname(listener, (struct sockaddr *)&address, &size);
    watch(listener, EPOLLIN);
    watch(STDIN_FILENO, EPOLLIN);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int number = 0; number < count; number++) {
            int fd = events[number].data.fd;
            if (fd == STDIN_FILENO)
                return 0;
            if (fd == listener)
                welcome(fd);
            else if (owner[fd])
                tick(fd);
            else if (connections[fd]) {
                hear(fd);
                if (connections[fd])
                    pump(fd);
            }
        }
    }
}

/*
 * The least that can ping so many hosts one after the other at one request a millisecond: sleep until the next one's time, send,
 * and once in ten milliseconds take what has come, in one call. Nothing is timed, matched, resolved or told, so no pinger can be
 * cheaper at this pacing; `nobody` as the fourth argument leaves the sends out too, and shows what waking up costs by itself.
 *
 *   floor FIRST-ADDRESS HOSTS SECONDS [nobody]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { PAYLOAD_BYTES = 56, BATCH = 64, DRAIN_EACH = 10, INTERVAL_NS = 1000000, SECOND_NS = 1000000000 };

static char buffers[BATCH][128];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* What has come; only its number counts. */
static unsigned long drain(int fd)
{
	struct iovec parts[BATCH];
	struct mmsghdr messages[BATCH];
	unsigned long taken = 0;
	int count;

	do {
		memset(messages, 0, sizeof messages);
		for (int i = 0; i < BATCH; i++) {
			parts[i] = (struct iovec){ buffers[i], sizeof buffers[i] };
			messages[i].msg_hdr.msg_iov = &parts[i];
			messages[i].msg_hdr.msg_iovlen = 1;
		}
		count = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
		taken += count > 0 ? count : 0;
	} while (count == BATCH);
	return taken;
}

int main(int argc, char **argv)
{
	struct { struct icmphdr header; char payload[PAYLOAD_BYTES]; } request = { .header.type = ICMP_ECHO };
	struct sockaddr_in to = { .sin_family = AF_INET };
	unsigned long sent = 0, answered = 0;
	struct in_addr first;
	struct timespec next;

	if (argc < 4 || !inet_aton(argv[1], &first)) {
		fprintf(stderr, "usage: floor FIRST-ADDRESS HOSTS SECONDS [nobody]\n");
		return 2;
	}
	unsigned long hosts = strtoul(argv[2], NULL, 10), total = strtoul(argv[3], NULL, 10) * (SECOND_NS / INTERVAL_NS);
	int sends = argc < 5;

	int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	if (fd < 0 || !hosts)
		fail("no ping socket, or no hosts");
	if (clock_gettime(CLOCK_MONOTONIC, &next))
		fail("clock_gettime");
	for (unsigned long number = 0; number < total; number++) {
		next.tv_nsec += INTERVAL_NS;
		if (next.tv_nsec >= SECOND_NS) {
			next.tv_nsec -= SECOND_NS;
			next.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
		if (!sends)
			continue;
		to.sin_addr.s_addr = htonl(ntohl(first.s_addr) + number % hosts);
		request.header.un.echo.sequence = htons(number);
		if (sendto(fd, &request, sizeof request, 0, (struct sockaddr *)&to, sizeof to) < 0)
			fail("sendto");
		sent++;
		if (number % DRAIN_EACH == DRAIN_EACH - 1)
			answered += drain(fd);
	}
	/* The last one's. */
	clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){ .tv_nsec = 100 * 1000 * 1000 }, NULL);
	answered += drain(fd);
	if (sends)
		printf("%lu sent, %lu answered\n", sent, answered);
	else
		puts("nothing sent");
	return 0;
}

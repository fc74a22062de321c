// A ping as a VPN server in C proxies it: out of the tunnel, by a raw socket, and the reply to the client that asked.
// As root: ping_through CLIENT GATEWAY REMOTE.
#include "echogate.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char why[512]; // Says what is wrong with a set-up.

static void must(EchogateStatus status, const char *what) {
    if (status == ECHOGATE_STATUS_OK) return;
    fprintf(stderr, "%s: %s\n%s\n", what, echogate_status_text(status), why);
    exit(1);
}

static void put_checksum(uint8_t *place, const uint8_t *bytes, size_t length) {
    uint32_t sum = 0;
    for (size_t at = 0; at < length; at += 2) sum += (uint32_t)bytes[at] << 8 | bytes[at + 1];
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    memcpy(place, &(uint16_t){htons((uint16_t)~sum)}, 2);
}

int main(int count, char **arguments) {
    if (count != 4) return fprintf(stderr, "usage: %s CLIENT GATEWAY REMOTE\n", *arguments), 2;
    EchogateSettings settings;
    EchogateProxy proxy;
    EchogateHandle handle;
    EchogateOutside outside;
    must(echogate_settings_init(&settings, sizeof settings), "settings");
    settings.clients = arguments[1], settings.addresses = arguments[2];
    must(echogate_proxy_new(&settings, &proxy, why, sizeof why), "proxy");
    must(echogate_handle_new(proxy, 0, &handle), "handle");
    must(echogate_outside_open_queue(proxy, 64, &outside, why, sizeof why), "outside");

    // What decryption would give: an echo request of ident 1, sequence 7.
    uint8_t packet[1500] = {0x45, [3] = 36, [8] = 64, 1, [20] = 8, [25] = 1, [27] = 7};
    memcpy(packet + 28, "echogate", 8);
    inet_pton(AF_INET, arguments[1], packet + 12), inet_pton(AF_INET, arguments[3], packet + 16);
    put_checksum(packet + 10, packet, 20), put_checksum(packet + 22, packet + 20, 16);

    EchogateAnswer answer;
    uint8_t error[ECHOGATE_ERROR_BYTES_MAX]; // For the client, if there is one.
    size_t length = 36, error_length = 0;
    int32_t system_error = 0;
    must(echogate_outbound(handle, echogate_now(), ECHOGATE_AT_LAST, packet, length, &answer), "outbound");
    if (answer.verdict == ECHOGATE_VERDICT_CARRY) // The rest of a large ping: should it be lost here, no reply comes.
        echogate_outside_send(outside, packet, answer.length, answer.address, answer.to, NULL);
    else if (answer.verdict != ECHOGATE_VERDICT_FORWARD)
        echogate_tell(handle, echogate_now(), packet, length, &answer, error, sizeof error, &error_length);
    else if (echogate_outside_send(outside, packet, answer.length, answer.address, answer.to, &system_error))
        echogate_not_sent(handle, echogate_now(), packet, answer.length, system_error, 0, error, sizeof error, &error_length);
    printf("verdict %d (%s), errno %d, %zu bytes to tell the client\n", answer.verdict,
           echogate_reason_name(answer.reason), system_error, error_length);
    if (answer.verdict != ECHOGATE_VERDICT_FORWARD || system_error != 0) return 1;

    uint32_t client; // Whom the server would encrypt the reply for.
    must(echogate_outside_receive(outside, 10000000000u, packet, sizeof packet, &client, &length), "reply");
    printf("%zu bytes from %s ", length, inet_ntop(AF_INET, packet + 12, why, sizeof why));
    printf("for %s: type %d, ident %d, sequence %d, %.8s\n", inet_ntop(AF_INET, &client, why, sizeof why), packet[20],
           packet[24] << 8 | packet[25], packet[26] << 8 | packet[27], (char *)packet + 28);
    must(echogate_expire(handle, echogate_now(), NULL), "expire");
    must(echogate_outside_free(outside) | echogate_handle_free(handle) | echogate_proxy_free(proxy), "free");
}

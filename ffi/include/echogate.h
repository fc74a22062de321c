/*
 * Echogate: proxied pings for a VPN server. docs/embedding.md says where the calls belong.
 *
 * Made from ffi/src by cbindgen; do not edit.
 *
 * - Every function but those that return a text or the time returns an EchogateStatus, and none ever unwinds. What becomes of a packet
 *   is in its EchogateAnswer.
 * - Proxies, handles and outsides are numbers. One that was freed, that is of another kind, or that is 0 is told, always.
 * - A pointer that is NULL where it must not be, a misaligned pointer to a struct, and a length beyond any packet's are told.
 *   Otherwise a pointer must point to what is said, for as long as the call lasts: nobody can check that. Bytes need
 *   no alignment. A function that fails has written nothing but what it says it has.
 * - Addresses are in network byte order, as `s_addr` of `struct in_addr`.
 * - Structs are 0 in their reserved fields. Their sizes are passed, so that a header and a library that do not fit are told.
 */


#ifndef ECHOGATE_H
#define ECHOGATE_H

#include <stddef.h>
#include <stdint.h>

// The most packets of one call.
#define ECHOGATE_BATCH_MAX 1024

// The most bytes of an error for a client: room enough for any.
#define ECHOGATE_ERROR_BYTES_MAX 576

// For echogate_outbound: this worker is asked last, every other has answered ECHOGATE_VERDICT_ELSEWHERE; or the server has no
// way to pass a packet from one worker to another.
#define ECHOGATE_AT_LAST 1

// In echogate_expire's `wait_ns`: the thread may sleep as long as it likes.
#define ECHOGATE_FOREVER UINT64_MAX

// How a call went. What happened to a packet is its answer's verdict, not the call's status.
enum EchogateStatus
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The call did what it is for.
  ECHOGATE_STATUS_OK = 0,
  // A pointer that must not be is NULL, or a handle is 0.
  ECHOGATE_STATUS_NULL = 1,
  // A pointer to a struct is not aligned for it.
  ECHOGATE_STATUS_MISALIGNED = 2,
  // A length is beyond any packet's (65,535 bytes), or a count beyond ECHOGATE_BATCH_MAX.
  ECHOGATE_STATUS_LENGTH = 3,
  // A struct's size is not one that this library knows: header and library are of different versions, or a binding
  // lays the struct out in another way.
  ECHOGATE_STATUS_SIZE = 4,
  // A flag, or a field beyond those that this library knows, is set.
  ECHOGATE_STATUS_UNSUPPORTED = 5,
  // There is no such handle (any more): it was freed, or is none of this kind.
  ECHOGATE_STATUS_UNKNOWN = 6,
  // Another thread is in a call with this handle; or a callback would free an outside. Nothing was done.
  ECHOGATE_STATUS_BUSY = 7,
  // A call with this handle has panicked before. Free it.
  ECHOGATE_STATUS_POISONED = 8,
  // The library panicked: a bug in it. It has been stopped short of the caller.
  ECHOGATE_STATUS_PANICKED = 9,
  // The worker's handle is taken, or there is no worker of this number.
  ECHOGATE_STATUS_TAKEN = 10,
  // There are as many of this kind as there can be: free some.
  ECHOGATE_STATUS_FULL = 11,
  // The set-up failed, and the error text says why and what mends it.
  ECHOGATE_STATUS_SETUP = 12,
  // The buffer is too short for what belongs there.
  ECHOGATE_STATUS_SHORT = 13,
  // Two buffers that must be apart share bytes.
  ECHOGATE_STATUS_OVERLAP = 14,
  // The kernel did not send the packet: see the errno, and give the packet to echogate_not_sent.
  ECHOGATE_STATUS_NOT_SENT = 15,
  // Nothing came in the time given.
  ECHOGATE_STATUS_EMPTY = 16,
  // The receiving thread has ended: no reply comes any more.
  ECHOGATE_STATUS_ENDED = 17,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum EchogateStatus EchogateStatus;
#else
typedef int32_t EchogateStatus;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What becomes of a packet.
enum EchogateVerdict
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // From a client: none of Echogate's business. Carry on as before; the packet is unchanged.
  ECHOGATE_VERDICT_FALL_THROUGH = 1,
  // From a client: rewritten. Send `length` bytes from the gateway address `from` to `to`.
  ECHOGATE_VERDICT_FORWARD = 2,
  // From a client: too many new mappings at once. Unchanged: offer it again in a call of its own.
  ECHOGATE_VERDICT_LATER = 3,
  // From a client: this worker has no ident left. Unchanged: have another worker's thread judge it, and the last one
  // with ECHOGATE_AT_LAST. Never with that flag.
  ECHOGATE_VERDICT_ELSEWHERE = 4,
  // From a client: drop it, and give it to echogate_tell, which may make an error for the client.
  ECHOGATE_VERDICT_REFUSE = 5,
  // From either side: drop it. From outside, a server with a path of its own for what is not Echogate's carries on with it
  // there: it is unchanged. From a client with ECHOGATE_REASON_TTL_EXPIRED: give it to echogate_tell first.
  ECHOGATE_VERDICT_DROP = 6,
  // From outside: rewritten. Give `length` bytes to the client `to`.
  ECHOGATE_VERDICT_DELIVER = 7,
  // From outside: an error about a request of the client `to`. Give it `length` bytes.
  ECHOGATE_VERDICT_TELL = 8,
  // From a client: a later fragment of a request that was forwarded, rewritten. Send it as ECHOGATE_VERDICT_FORWARD says; if
  // that fails, there is nothing to withdraw.
  ECHOGATE_VERDICT_CARRY = 9,
  // From a client: a fragment that came before its request's first one. Unchanged: offer it again after the packets that
  // came with it, for a second at most, or drop it.
  ECHOGATE_VERDICT_HOLD = 10,
  // From a client: a fragment whose request is judged by the worker `worker`. Unchanged: have that one's thread judge it.
  ECHOGATE_VERDICT_BELONGS_TO = 11,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum EchogateVerdict EchogateVerdict;
#else
typedef int32_t EchogateVerdict;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Why a packet falls through, is refused or is dropped. A number keeps its meaning in later versions, which may have more.
enum EchogateReason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It is none of these.
  ECHOGATE_REASON_NONE = 0,
  // Dropped: fewer bytes than an IPv4 header has.
  ECHOGATE_REASON_TRUNCATED = 1,
  // Dropped, from outside: not IPv4.
  ECHOGATE_REASON_VERSION = 2,
  // Dropped: an impossible IPv4 header length.
  ECHOGATE_REASON_HEADER_LENGTH = 3,
  // Dropped: a total length beyond the bytes received, or below the header's.
  ECHOGATE_REASON_TOTAL_LENGTH = 4,
  // Dropped: a wrong IPv4 header checksum.
  ECHOGATE_REASON_HEADER_CHECKSUM = 5,
  // Dropped: ICMP shorter than an echo's header.
  ECHOGATE_REASON_ICMP_TRUNCATED = 6,
  // Dropped, from outside: a fragment of ICMP.
  ECHOGATE_REASON_FRAGMENT = 7,
  // Dropped: the TTL is used up.
  ECHOGATE_REASON_TTL_EXPIRED = 8,
  // Dropped: a request from the gateway's own address.
  ECHOGATE_REASON_OWN_SOURCE = 9,
  // Dropped: a request from an address that is no client's.
  ECHOGATE_REASON_NOT_CLIENT = 10,
  // Dropped: a request to an address that nobody may ping.
  ECHOGATE_REASON_REMOTE_REFUSED = 11,
  // Dropped: a request to one of the gateway's own addresses.
  ECHOGATE_REASON_REMOTE_OWN = 12,
  // Refused: a request to an address that the settings deny.
  ECHOGATE_REASON_REMOTE_DENIED = 13,
  // Refused: the client's packets are used up.
  ECHOGATE_REASON_OVER_PACKETS = 14,
  // Refused: the client's bytes are used up.
  ECHOGATE_REASON_OVER_BYTES = 15,
  // Refused: the client's new mappings are used up.
  ECHOGATE_REASON_OVER_NEW_MAPPINGS = 16,
  // Refused: the client has as many mappings as it may.
  ECHOGATE_REASON_OVER_MAPPINGS = 17,
  // Refused: no ident is left.
  ECHOGATE_REASON_NO_IDENT = 18,
  // Refused: the mapping was just being ended by another worker.
  ECHOGATE_REASON_MAPPING_CONTENDED = 19,
  // Refused: other workers kept changing the same place of the table of echoes.
  ECHOGATE_REASON_ECHO_CONTENDED = 20,
  // Dropped, from outside: neither an echo reply nor an error that is wanted.
  ECHOGATE_REASON_NOT_ECHO_REPLY = 21,
  // Dropped: an error with a wrong ICMP checksum.
  ECHOGATE_REASON_ERROR_CHECKSUM = 22,
  // Dropped: an error that quotes no echo request, or too little of one.
  ECHOGATE_REASON_ERROR_QUOTE = 23,
  // Dropped: an error about a request that is not outstanding, or that the gateway never sent.
  ECHOGATE_REASON_ERROR_UNMATCHED = 24,
  // Dropped: a reply or an error to an address that is not the gateway's.
  ECHOGATE_REASON_NOT_OUR_ADDRESS = 25,
  // Dropped: a reply that no request waits for.
  ECHOGATE_REASON_NO_ECHO = 26,
  // Dropped: a reply after the echo timeout.
  ECHOGATE_REASON_LATE = 27,
  // Dropped: a reply to a request whose mapping is gone.
  ECHOGATE_REASON_NO_MAPPING = 28,
  // Dropped: a request with a source route.
  ECHOGATE_REASON_SOURCE_ROUTE = 29,
  // Dropped: a first fragment that does not hold an echo's header.
  ECHOGATE_REASON_FRAGMENT_TINY = 30,
  // Dropped: a fragment of a length that no fragment can have where it stands.
  ECHOGATE_REASON_FRAGMENT_LENGTH = 31,
  // Dropped: a fragment that overlaps another, or contradicts the request's length; and what follows of such a request.
  ECHOGATE_REASON_FRAGMENT_OVERLAP = 32,
  // Dropped: of a request in too many pieces that do not meet.
  ECHOGATE_REASON_FRAGMENT_SCATTERED = 33,
  // Dropped: of a client that has begun too much and not completed it.
  ECHOGATE_REASON_FRAGMENT_UNFINISHED = 34,
  // Dropped: a fragment whose first one did not come in time.
  ECHOGATE_REASON_FRAGMENT_EARLY = 35,
  // Refused: the gateway address of the client's mapping is lost; the next request gets another mapping.
  ECHOGATE_REASON_ADDRESS_LOST = 36,
  // Falls through: UDP or TCP to port 53.
  ECHOGATE_REASON_DNS = 101,
  // Falls through: not an ICMP echo request.
  ECHOGATE_REASON_NOT_ECHO_REQUEST = 102,
  // Falls through: to an address among the clients' own.
  ECHOGATE_REASON_TO_INSIDE = 103,
  // Falls through: to one of the gateway's own addresses, with `pass_own` set.
  ECHOGATE_REASON_TO_OWN = 104,
  // Falls through: not IPv4.
  ECHOGATE_REASON_NOT_IPV4 = 105,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum EchogateReason EchogateReason;
#else
typedef int32_t EchogateReason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a proxy is made from. Let echogate_settings_init fill it, then set at least `clients` and `addresses`.
//
// Lists are texts with commas between ("10.66.0.0/24, 10.67.0.0/24"), NULL for an empty one; they are read during
// echogate_proxy_new only.
typedef struct EchogateSettings {
  // sizeof(EchogateSettings), set by echogate_settings_init. Later versions of the struct are longer: a field that the
  // caller's does not have keeps its default.
  size_t size;
  // The prefixes that clients come from.
  const char *clients;
  // The gateway's addresses outside, 1 to 16, in the order of their numbers.
  const char *addresses;
  // Prefixes that nobody may ping, besides those that nobody can.
  const char *denied;
  // Prefixes that may be pinged in spite of `denied`: the longest prefix of both decides.
  const char *allowed;
  // A mapping (a client's ident and the gateway's ident for it) ends when unused for so many milliseconds; 60,000.
  uint64_t mapping_idle_ms;
  // How many milliseconds a reply is waited for; 60,000.
  uint64_t echo_timeout_ms;
  // How many milliseconds an ident rests after its mapping; 0, the default, for the shortest that is safe.
  uint64_t hold_down_ms;
  // Words of 8 bytes of the table of outstanding echoes, as a power of two: 14 to 26; 20.
  uint32_t echo_words_log2;
  // The largest packet, in bytes, that reaches a client unfragmented: the tunnel's MTU; 1500.
  uint32_t inside_mtu;
  // Threads that will take a handle, 1 to 64; 1. Those that only receive (echogate_receiver_new) do not count.
  uint32_t workers;
  // Echo requests that a client may send in a second, in the long run; 1000. As for each limit, 0 is none.
  uint32_t packets_per_second;
  // Echo requests that a client may send at once; 2000.
  uint32_t packets_burst;
  // Bytes of echo requests, IP header included, in a second; 1,000,000.
  uint32_t bytes_per_second;
  // Bytes of echo requests at once; 4,000,000.
  uint32_t bytes_burst;
  // New mappings in a second, in the long run (each ping that is started is one); 20.
  uint32_t mappings_per_second;
  // New mappings at once; 200.
  uint32_t mappings_burst;
  // Mappings that a client may have at once; 256.
  uint32_t mappings;
  // Whether Echogate takes one from the TTL of what it forwards and delivers: 1, the default, where the server takes packets
  // out of its own tunnel; 0 where the kernel has routed them to it.
  uint8_t decrement_ttl;
  // Whether errors about proxied echoes are brought to the clients (traceroute, path MTU); 1.
  uint8_t icmp_errors;
  // Whether requests to the gateway's own addresses fall through, or are dropped; 0.
  uint8_t pass_own;
  // Whether an error is dropped if the checksum of the IP header that it quotes is wrong (RFC 5508 REQ-3a); 0.
  uint8_t quoted_checksum;
  // 0.
  uint8_t reserved[4];
} EchogateSettings;

// A proxy: policy and tables, shared by its handles. 0 is none.
typedef uint64_t EchogateProxy;

// One thread's way into a proxy. 0 is none.
typedef uint64_t EchogateHandle;

// The answer about a packet. What its verdict does not speak of is 0.
typedef struct EchogateAnswer {
  // An EchogateVerdict.
  int32_t verdict;
  // An EchogateReason.
  int32_t reason;
  // How many bytes to send or deliver. What the buffer holds beyond is not part of the packet.
  uint32_t length;
  // The gateway address to send from, as in `s_addr` of `struct in_addr`: in network byte order.
  uint32_t from;
  // The remote or the client, in network byte order.
  uint32_t to;
  // The number of the gateway address to send from, or to tell the client from, as they are listed in the settings.
  uint8_t address;
  // Of ECHOGATE_VERDICT_REFUSE: whether the client is to be told. It is now and then, so that errors flood nobody.
  uint8_t tell;
  // Of ECHOGATE_VERDICT_BELONGS_TO: the worker's number.
  uint8_t worker;
  // 0.
  uint8_t reserved;
} EchogateAnswer;

// One of several packets to judge.
typedef struct EchogatePacket {
  // In: the packet, an IPv4 datagram; rewritten in place as the answer says.
  uint8_t *bytes;
  // In: how many bytes were received.
  size_t length;
  // Out: what becomes of it.
  struct EchogateAnswer answer;
} EchogatePacket;

// Takes a reply, or an error about a request, for the client with this address (network byte order): an IPv4 datagram, which
// may be changed in place and is gone when the callback returns. Returns 0, or the errno by which the drop is
// counted (ENOBUFS for a queue that is full). Runs on the receiving thread: it must not block, and no exception may
// leave it.
typedef int32_t (*EchogateDeliver)(void *context, uint32_t client, uint8_t *bytes, size_t length);

// The outside of an embedded gateway: its sockets and the thread that receives. Any thread may use it at any time. 0 is
// none.
typedef uint64_t EchogateOutside;

// What an outside has counted.
typedef struct EchogateCounters {
  // Packets received by the raw socket: every echo reply that reaches the host, and every error about an echo.
  uint64_t received;
  // Replies that were delivered.
  uint64_t delivered;
  // Errors that were delivered.
  uint64_t told;
  // All others: none of Echogate's, or the callback or queue did not take it.
  uint64_t dropped;
} EchogateCounters;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What a status means, in a few words. NULL for a number that is none.
const char *echogate_status_text(int32_t status);

// Makes a proxy. ECHOGATE_STATUS_SETUP comes with a text in `error` (up to `error_size` bytes, always NUL-terminated;
// NULL for none) that says what is wrong and what mends it. There can be 64 at once.
EchogateStatus echogate_proxy_new(const struct EchogateSettings *settings,
                                  EchogateProxy *proxy,
                                  char *error,
                                  size_t error_size);

// Frees a proxy. Handles and outsides made of it go on, and the tables live as long as one of them.
EchogateStatus echogate_proxy_free(EchogateProxy proxy);

// The handle of worker `worker`, from 0, for a thread that has packets of clients: a thread may use it for one call at a
// time; ECHOGATE_STATUS_BUSY is the answer to a second one. Freed, it can be had again, with all mappings. There can be
// 1024 at once, with those of echogate_receiver_new.
EchogateStatus echogate_handle_new(EchogateProxy proxy,
                                   uint32_t worker,
                                   EchogateHandle *handle);

// A handle for a thread that only has packets from outside: as many as there are such threads. It makes no mappings.
EchogateStatus echogate_receiver_new(EchogateProxy proxy, EchogateHandle *handle);

// Frees a handle, a poisoned one too. ECHOGATE_STATUS_BUSY, and nothing is freed, while another thread uses it.
EchogateStatus echogate_handle_free(EchogateHandle handle);

// Fills the settings with the defaults. `size` is sizeof(EchogateSettings).
EchogateStatus echogate_settings_init(struct EchogateSettings *settings, size_t size);

// The library's clock, in nanoseconds: monotonic, and the same for all threads. A server may use one of its own instead, for all
// calls, if it never goes back; not with an outside, which reads this one.
uint64_t echogate_now(void);

// Judges a packet from a client. `now_ns` is the time (echogate_now), read half a second ago at most. `flags` is 0 or
// ECHOGATE_AT_LAST.
EchogateStatus echogate_outbound(EchogateHandle handle,
                                 uint64_t now_ns,
                                 uint32_t flags,
                                 uint8_t *bytes,
                                 size_t length,
                                 struct EchogateAnswer *answer);

// As echogate_outbound, for `count` packets, ECHOGATE_BATCH_MAX at most, which share the cost of a call. `packet_size` is
// sizeof(EchogatePacket). If a packet cannot be looked at, that is the call's status, and those after it have no answer
// (verdict 0).
EchogateStatus echogate_outbound_batch(EchogateHandle handle,
                                       uint64_t now_ns,
                                       uint32_t flags,
                                       struct EchogatePacket *packets,
                                       size_t count,
                                       size_t packet_size);

// Judges a packet from outside, from any thread's handle.
EchogateStatus echogate_inbound(EchogateHandle handle,
                                uint64_t now_ns,
                                uint8_t *bytes,
                                size_t length,
                                struct EchogateAnswer *answer);

// As echogate_inbound, for many packets; see echogate_outbound_batch.
EchogateStatus echogate_inbound_batch(EchogateHandle handle,
                                      uint64_t now_ns,
                                      struct EchogatePacket *packets,
                                      size_t count,
                                      size_t packet_size);

// After ECHOGATE_VERDICT_REFUSE, and after ECHOGATE_VERDICT_DROP of a packet from a client: makes the error that its client is to
// get, if any. The packet is as it was offered, and `answer` what was answered. `error_length` is 0 if the client
// is not to be told, or has been often enough. `error` has room for ECHOGATE_ERROR_BYTES_MAX bytes, apart from the packet.
EchogateStatus echogate_tell(EchogateHandle handle,
                             uint64_t now_ns,
                             const uint8_t *bytes,
                             size_t length,
                             const struct EchogateAnswer *answer,
                             uint8_t *error,
                             size_t error_room,
                             size_t *error_length);

// For a packet that was to be forwarded, as it is now, and that was not sent: forgets its echo, and makes the error that its
// client is to get, if any, as echogate_tell does. `system_error` is the errno; `mtu` what fits on the way out in bytes, 0 if that is
// not known (it matters for EMSGSIZE only). The packet becomes the client's own again where there is an error.
EchogateStatus echogate_not_sent(EchogateHandle handle,
                                 uint64_t now_ns,
                                 uint8_t *bytes,
                                 size_t length,
                                 int32_t system_error,
                                 uint32_t mtu,
                                 uint8_t *error,
                                 size_t error_room,
                                 size_t *error_length);

// Ends what is due: idle mappings, hold-downs, unanswered echoes. To be called after each bunch of packets, and no later
// than `wait_ns` after this call, which is how long the thread may sleep if no packet comes (ECHOGATE_FOREVER: as long as
// it likes). NULL if that is of no interest.
EchogateStatus echogate_expire(EchogateHandle handle,
                               uint64_t now_ns,
                               uint64_t *wait_ns);

// The name of a reason, as counters call it: "over_packets". NULL for a number that is none.
const char *echogate_reason_name(int32_t reason);

// Opens raw sockets in the calling thread's network namespace (CAP_NET_RAW) and starts a thread that calls `deliver`
// with each reply, and with `context`. The time of every call with the proxy's handles must be echogate_now's.
// ECHOGATE_STATUS_SETUP comes with a text in `error`. There can be 64 at once.
EchogateStatus echogate_outside_open(EchogateProxy proxy,
                                     EchogateDeliver deliver,
                                     void *context,
                                     EchogateOutside *outside,
                                     char *error,
                                     size_t error_size);

// As echogate_outside_open, with replies put into a queue with room for `room` of them, for echogate_outside_receive; when
// it is full they are dropped and counted.
EchogateStatus echogate_outside_open_queue(EchogateProxy proxy,
                                           size_t room,
                                           EchogateOutside *outside,
                                           char *error,
                                           size_t error_size);

// Sends a packet that is to be forwarded: `length`, `address` and `to` of the answer. Does not block. ECHOGATE_STATUS_NOT_SENT comes
// with the errno in `system_error` (NULL if that is of no interest); the packet is then for echogate_not_sent.
EchogateStatus echogate_outside_send(EchogateOutside outside,
                                     const uint8_t *bytes,
                                     size_t length,
                                     uint8_t address,
                                     uint32_t to,
                                     int32_t *system_error);

// What fits into one packet from gateway address number `address` to `to`, in bytes, for echogate_not_sent after EMSGSIZE; 0 if
// that cannot be told. A few system calls.
EchogateStatus echogate_outside_mtu(EchogateOutside outside,
                                    uint8_t address,
                                    uint32_t to,
                                    uint32_t *mtu);

// Takes a reply, or an error about a request, out of the queue of echogate_outside_open_queue; waits up to `wait_ns` for one (0: not
// at all, ECHOGATE_FOREVER: until it comes or the outside ends). Several threads may wait. With ECHOGATE_STATUS_SHORT
// the reply is lost, and `length` says how long it was. ECHOGATE_STATUS_EMPTY: none came.
EchogateStatus echogate_outside_receive(EchogateOutside outside,
                                        uint64_t wait_ns,
                                        uint8_t *buffer,
                                        size_t room,
                                        uint32_t *client,
                                        size_t *length);

// What an outside has counted by now: received = delivered + told + dropped, once nothing is in flight.
// `counters_size` is sizeof(EchogateCounters).
EchogateStatus echogate_outside_counters(EchogateOutside outside,
                                         struct EchogateCounters *counters,
                                         size_t counters_size);

// Whether the receiving thread still runs. If not: ECHOGATE_STATUS_ENDED, with a text in `error` that says why. Free the outside
// then, and open another.
EchogateStatus echogate_outside_fault(EchogateOutside outside,
                                      char *error,
                                      size_t error_size);

// Ends the receiving thread, waits for it and closes the sockets. The callback is not called any more when this returns; threads
// that wait in echogate_outside_receive return. Not from a callback: ECHOGATE_STATUS_BUSY.
EchogateStatus echogate_outside_free(EchogateOutside outside);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ECHOGATE_H */

// Why a rank is lost: every text there is, in one table.
//
// A text goes on from "rank 3", so that the cause comes first: "rank 3 ended without a goodbye: ...; the job cannot go on".
// It names the rank that noticed by its number, never as "this rank": others read it too. One with % is a format; what it
// is given stands beside it.
#pragma once

#include <string.h>

#define INTENTPM_LOSSES(LOSS)                                                                                              \
    LOSS(PROCESS_ENDED, "ended without a goodbye: its process is gone")                                                    \
    LOSS(CONNECTION_CLOSED, "ended without a goodbye: its connection was closed")                                          \
    LOSS(TRANSPORT_CLOSED, "ended without a goodbye: it closed its transport")                                             \
    LOSS(CONNECTION_BROKE, "cannot be reached any more by rank %u: %s") /* who noticed, the system's or UCX's reason */    \
    LOSS(NO_ANSWER, "cannot be reached any more by rank %u: no answer for %.1f s") /* who noticed, peer_timeout */         \
    LOSS(UNREACHABLE, "cannot be reached any more by rank %u: its process is gone, or the network between them")           \
    LOSS(SILENT, "gave no sign of life to rank %u for %.1f s (peer_timeout %.1f s), though it has not ended: it is stopped, " \
         "hangs or is cut off; the last that came from it was %s") /* who waited, how long, a message */                    \
    LOSS(GAVE_UP, "gave up rank %u as lost") /* whom it told */                                                            \
    LOSS(NONSENSE, "sent rank %u a message that makes no sense (a defect)") /* the receiver */                             \
    LOSS(MALFORMED, "sent rank %u a malformed message: %s") /* the receiver, what is wrong */                     \
    LOSS(OUT_OF_MEMORY, "ran out of memory for messages")                                                                  \
    LOSS(DEVICE, "lost the rows that lie on its device, which has failed")                                                  \
    LOSS(NO_MEMORY_TO_RECEIVE, "was given up by rank %u, which has no memory for a message from it")                       \
    LOSS(NO_MEMORY_TO_SEND, "was given up by rank %u, which has no memory to finish a message to it")                      \
    LOSS(NO_MEMORY_TO_TELL, "was given up by rank %u, which has no memory to tell it that the job has failed")             \
    LOSS(MEASUREMENT_ENDED, "was given up by rank %u: a measurement was abandoned") /* who measured */                     \
    LOSS(TOLD_LOST, "is lost, as rank %u says") /* who said so */                                                          \
    LOSS(UNWANTED, "was given up by rank %u with its first message, as asked") /* the receiver */                          \
    LOSS(SIMULATION_ENDED, "ended with its simulation: %s") /* why that ended */

enum IntentpmLoss {
#define INTENTPM_LOSS_CODE(name, text) LOSS_##name,
    INTENTPM_LOSSES(INTENTPM_LOSS_CODE)
#undef INTENTPM_LOSS_CODE
    LOSS_COUNT
};

static inline const char* intentpm_loss_text(int loss) {
    static const char* const texts[] = {
#define INTENTPM_LOSS_TEXT(name, text) text,
        INTENTPM_LOSSES(INTENTPM_LOSS_TEXT)
#undef INTENTPM_LOSS_TEXT
    };
    return texts[loss];
}

static inline bool intentpm_is_loss(const char* why, int loss) {
    const char* text = intentpm_loss_text(loss);
    return strncmp(why, text, strcspn(text, "%")) == 0;
}

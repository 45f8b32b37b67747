"""Why a rank is lost; the texts are in losses.hpp, what Python adds to them in losses.pyx."""

cdef extern from "foundation/losses.hpp" nogil:
    enum:
        LOSS_PROCESS_ENDED
        LOSS_CONNECTION_CLOSED
        LOSS_TRANSPORT_CLOSED
        LOSS_CONNECTION_BROKE        # rank that noticed, reason
        LOSS_NO_ANSWER               # rank that noticed, seconds
        LOSS_UNREACHABLE             # rank that noticed
        LOSS_SILENT                  # rank that waited, seconds, peer_timeout, what the other said last
        LOSS_GAVE_UP                 # rank given up
        LOSS_NONSENSE                # receiver
        LOSS_MALFORMED               # receiver, what is wrong
        LOSS_OUT_OF_MEMORY
        LOSS_DEVICE
        LOSS_NO_MEMORY_TO_RECEIVE    # rank without memory
        LOSS_NO_MEMORY_TO_SEND       # rank without memory
        LOSS_NO_MEMORY_TO_TELL       # rank without memory
        LOSS_MEASUREMENT_ENDED       # rank that measured
        LOSS_TOLD_LOST               # rank that said so
        LOSS_UNWANTED                # receiver
        LOSS_SIMULATION_ENDED        # why it ended
        LOSS_COUNT
    # Static; never NULL. A format where losses.hpp says so.
    const char* loss_text "intentpm_loss_text"(int loss)
    # Whether a why is that one, as far as it is the same whatever it is given.
    bint is_loss "intentpm_is_loss"(const char* why, int loss)

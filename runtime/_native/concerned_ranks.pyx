"""Which ranks a step looks at; ``concerned_ranks.pxd`` is the contract."""


cdef class ConcernedRanks:
    def __init__(self, uint32_t size):
        """size: ranks in the job."""
        self.words.resize((size + 63) // 64, 0)

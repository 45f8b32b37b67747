"""Native (Cython) modules of the data path; private."""

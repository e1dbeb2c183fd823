//! Kernel limits of a gateway: what they are, what they should be for its size, and how to change and restore them.

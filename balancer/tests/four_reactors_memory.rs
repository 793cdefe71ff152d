//! The test of memory.rs, with four reactors. Alone in its file, too.

#[path = "memory.rs"]
mod memory;

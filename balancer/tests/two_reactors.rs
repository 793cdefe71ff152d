//! The tests of the files beside this one, with two reactors.

// Each of them has its own peers.
#![allow(clippy::duplicate_mod)]

#[path = "background.rs"]
mod background;
#[path = "bounds.rs"]
mod bounds;
#[path = "gearman.rs"]
mod gearman;
#[path = "lines.rs"]
mod lines;
#[path = "malformed.rs"]
mod malformed;
#[path = "tasks.rs"]
mod tasks;

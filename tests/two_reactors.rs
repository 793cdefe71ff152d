//! The tests of the files beside this one in which the balancer works hard, with two reactors.

#![cfg(unix)]
// Each of them has its own support.
#![allow(clippy::duplicate_mod)]

#[path = "faults.rs"]
mod faults;
#[path = "hostile.rs"]
mod hostile;
#[path = "lines.rs"]
mod lines;
#[path = "shutdown.rs"]
mod shutdown;
#[path = "submit.rs"]
mod submit;
#[path = "watching.rs"]
mod watching;

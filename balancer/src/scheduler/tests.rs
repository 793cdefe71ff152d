//! The rules, one by one, with time moved by hand.

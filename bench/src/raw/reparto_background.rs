//! Reparto's background tasks, driven raw: handed in until they are accepted, or until their results are fetched.

use super::reparto::{Client, Way};
use super::{ClientCodec, ClientProtocol};

/// Background tasks: one is done for its client once it is ACCEPTED, so once it is durable.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepartoBackground;

/// Background tasks whose results are fetched: one is done for its client once its recorded result is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepartoFetched;

impl ClientProtocol for RepartoBackground {
    fn name(&self) -> &'static str {
        "reparto"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        Box::new(Client::new(size, Way::Accepted))
    }
}

impl ClientProtocol for RepartoFetched {
    fn name(&self) -> &'static str {
        "reparto"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        Box::new(Client::new(size, Way::Fetched))
    }
}

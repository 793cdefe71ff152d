//! Gearman's binary protocol, driven raw: foreground jobs, workers that ask for several jobs at once, and background
//! jobs, which are done for a client once the server has taken them.

use std::collections::VecDeque;

use memchr::memchr;

use super::protocol::{ACTION, MIN_PAYLOAD_BYTES, count_up};
use super::{ClientCodec, ClientProtocol, Output, Protocol, RawError, WorkerCodec};

const HEADER_BYTES: usize = 12;
const REQUEST: &[u8; 4] = b"\0REQ";
const RESPONSE: &[u8; 4] = b"\0RES";

const CAN_DO: u32 = 1;
const PRE_SLEEP: u32 = 4;
const NOOP: u32 = 6;
const SUBMIT_JOB: u32 = 7;
const JOB_CREATED: u32 = 8;
const GRAB_JOB: u32 = 9;
const NO_JOB: u32 = 10;
const JOB_ASSIGN: u32 = 11;
const WORK_COMPLETE: u32 = 13;
const WORK_FAIL: u32 = 14;
const ECHO_REQ: u32 = 16;
const ECHO_RES: u32 = 17;
const SUBMIT_JOB_BG: u32 = 18;
const ERROR: u32 = 19;
const WORK_EXCEPTION: u32 = 25;

/// Most GRAB_JOBs of a worker that are not answered yet.
const MAX_GRABS: usize = 256;

/// Gearman's binary protocol.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gearman;

impl ClientProtocol for Gearman {
    fn name(&self) -> &'static str {
        "gearman"
    }

    fn client(&self, _number: usize, size: usize) -> Box<dyn ClientCodec> {
        // The function, and no unique key, so that jobs are not merged.
        let names = [ACTION.as_bytes(), b"\0\0"].concat();
        let mut head = header(SUBMIT_JOB, names.len() + size).to_vec();
        head.extend_from_slice(&names);
        Box::new(Client { head, size, ready: false })
    }
}

impl Protocol for Gearman {
    fn worker(&self, _number: usize, _size: usize) -> Box<dyn WorkerCodec> {
        Box::new(Worker { ready: false, asleep: false, grabs: 0, wanted: 1 })
    }
}

struct Client {
    /// A SUBMIT_JOB without its payload, whose size counts the payload.
    head: Vec<u8>,
    size: usize,
    ready: bool,
}

impl ClientCodec for Client {
    fn greet(&mut self, output: &mut Output) {
        output.put(&packet(ECHO_REQ, b"?"));
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn tasks(&mut self, ids: &[u64], output: &mut Output) {
        for id in ids {
            output.put(&self.head);
            output.put(&id.to_be_bytes());
            output.put_payload(MIN_PAYLOAD_BYTES);
        }
    }

    fn read(&mut self, input: &[u8], _output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((kind, data)) = parse(&input[taken..])? {
            match kind {
                // Handles are given in the order of the jobs; the payload's number makes them needless.
                JOB_CREATED => {}
                WORK_COMPLETE => {
                    let payload = &data[after_nul(data)?..];
                    let Some(id) = payload.first_chunk().filter(|_| payload.len() == self.size) else {
                        return Err(RawError::WrongSize { got: payload.len(), sent: self.size });
                    };
                    done.push(u64::from_be_bytes(*id));
                }
                ECHO_RES => self.ready = true,
                WORK_FAIL | WORK_EXCEPTION => return Err(RawError::Refused("a job failed".into())),
                kind => other(kind, data)?,
            }
            taken += HEADER_BYTES + data.len();
        }
        Ok(taken)
    }
}

/// Digits of a background job's unique key.
const KEY_DIGITS: usize = 16;

/// Gearman's background jobs, each under a unique key of its own, as its client library gives them: a server that
/// keeps them in a database keeps them under that key.
#[derive(Debug, Clone, Copy, Default)]
pub struct GearmanBackground;

impl ClientProtocol for GearmanBackground {
    fn name(&self) -> &'static str {
        "gearman"
    }

    fn client(&self, number: usize, size: usize) -> Box<dyn ClientCodec> {
        let names = format!("{ACTION}\0client-{number}-{}\0", "0".repeat(KEY_DIGITS));
        let mut head = header(SUBMIT_JOB_BG, names.len() + size).to_vec();
        head.extend_from_slice(names.as_bytes());
        Box::new(BackgroundClient { head, asked: VecDeque::new(), ready: false })
    }
}

struct BackgroundClient {
    /// A SUBMIT_JOB_BG without its payload. Its unique key ends, before a NUL, in digits that count the jobs.
    head: Vec<u8>,
    /// Jobs without an answer: a connection's answers come in the order of its jobs.
    asked: VecDeque<u64>,
    ready: bool,
}

impl ClientCodec for BackgroundClient {
    fn greet(&mut self, output: &mut Output) {
        output.put(&packet(ECHO_REQ, b"?"));
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn tasks(&mut self, ids: &[u64], output: &mut Output) {
        for id in ids {
            let end = self.head.len() - 1;
            count_up(&mut self.head[end - KEY_DIGITS..end]);
            output.put(&self.head);
            output.put_payload(0);
            self.asked.push_back(*id);
        }
    }

    fn read(&mut self, input: &[u8], _output: &mut Output, done: &mut Vec<u64>) -> Result<usize, RawError> {
        let mut taken = 0;
        while let Some((kind, data)) = parse(&input[taken..])? {
            match kind {
                JOB_CREATED => done.push(self.asked.pop_front().ok_or(RawError::Unasked(0))?),
                ECHO_RES => self.ready = true,
                kind => other(kind, data)?,
            }
            taken += HEADER_BYTES + data.len();
        }
        Ok(taken)
    }
}

/// A worker that keeps as many GRAB_JOBs on the way as there have lately been jobs for, so that under load one
/// read brings many jobs, and when one job is about it soon does not ask for more than that. Twice as many after each
/// read without a NO_JOB, and half after one with it, suit gearmand as well as any other numbers that were tried.
struct Worker {
    ready: bool,
    /// It said PRE_SLEEP, and waits for NOOP.
    asleep: bool,
    /// GRAB_JOBs not answered yet.
    grabs: usize,
    /// GRAB_JOBs to have on the way.
    wanted: usize,
}

impl WorkerCodec for Worker {
    fn greet(&mut self, output: &mut Output) {
        output.put(&packet(CAN_DO, ACTION.as_bytes()));
        output.put(&packet(ECHO_REQ, b"?"));
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn read(&mut self, input: &[u8], output: &mut Output) -> Result<usize, RawError> {
        let (mut taken, mut jobs, mut none) = (0, 0, false);
        while let Some((kind, data)) = parse(&input[taken..])? {
            let start = taken + HEADER_BYTES;
            taken = start + data.len();
            match kind {
                JOB_ASSIGN => {
                    let handle_end = after_nul(data)?;
                    let payload_start = handle_end + after_nul(&data[handle_end..])?;
                    let payload = start + payload_start..taken;
                    output.put(&header(WORK_COMPLETE, handle_end + payload.len()));
                    output.put(&data[..handle_end]);
                    output.put_input(input, payload);
                    self.grabs = self.grabs.saturating_sub(1);
                    jobs += 1;
                }
                NO_JOB => {
                    self.grabs = self.grabs.saturating_sub(1);
                    none = true;
                }
                NOOP => self.asleep = false,
                ECHO_RES => {
                    self.ready = true;
                    self.asleep = true;
                    output.put(&packet(PRE_SLEEP, b""));
                }
                kind => other(kind, data)?,
            }
        }
        if self.ready && !self.asleep {
            self.ask(jobs, none, output);
        }
        Ok(taken)
    }
}

impl Worker {
    /// Asks for more jobs, or sleeps, after a batch of answers: so many jobs, and `none` if there was a NO_JOB.
    fn ask(&mut self, jobs: usize, none: bool, output: &mut Output) {
        if none {
            self.wanted = jobs.max(self.wanted / 2).max(1);
            if self.grabs == 0 && jobs == 0 {
                self.asleep = true;
                output.put(&packet(PRE_SLEEP, b""));
                return;
            }
        } else if jobs > 0 {
            self.wanted = (self.wanted * 2).min(MAX_GRABS);
        }
        let grab = header(GRAB_JOB, 0);
        while self.grabs < self.wanted {
            output.put(&grab);
            self.grabs += 1;
        }
    }
}

#[inline]
fn header(kind: u32, size: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(REQUEST);
    header[4..8].copy_from_slice(&kind.to_be_bytes());
    header[8..].copy_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    header
}

fn packet(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + data.len());
    out.extend_from_slice(&header(kind, data.len()));
    out.extend_from_slice(data);
    out
}

/// The type and data of the packet at the beginning of `input`, once it is whole.
#[inline(always)]
fn parse(input: &[u8]) -> Result<Option<(u32, &[u8])>, RawError> {
    let Some((header, rest)) = input.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [m0, m1, m2, m3, k0, k1, k2, k3, s0, s1, s2, s3] = *header;
    if [m0, m1, m2, m3] != *RESPONSE {
        return Err(no_packet(&header[..4]));
    }
    let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
    Ok(rest.get(..size).map(|data| (u32::from_be_bytes([k0, k1, k2, k3]), data)))
}

#[cold]
fn no_packet(beginning: &[u8]) -> RawError {
    malformed(format!("a packet that begins with {beginning:?}"))
}

/// Where the bytes after the next NUL begin.
#[inline]
fn after_nul(data: &[u8]) -> Result<usize, RawError> {
    match memchr(0, data) {
        Some(at) => Ok(at + 1),
        None => Err(malformed("a packet without its NUL bytes".into())),
    }
}

/// Packets that either side may get beside the work.
fn other(kind: u32, data: &[u8]) -> Result<(), RawError> {
    match kind {
        ERROR => Err(RawError::Refused(String::from_utf8_lossy(data).replace('\0', ": "))),
        JOB_CREATED | NOOP | NO_JOB => Ok(()),
        kind => Err(malformed(format!("a packet of type {kind}"))),
    }
}

fn malformed(what: String) -> RawError {
    RawError::Malformed { protocol: "gearman", what }
}

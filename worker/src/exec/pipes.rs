//! A command's pipes: a thread for each, so that input and output of any size flow at once, and one that sees
//! the command's end.

use std::io::{self, Read, Write};
use std::process::Child;
use std::thread::Builder;

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// Bytes of standard error that are kept: the last ones.
const TAIL_BYTES: usize = 2 * 1024;
/// An input of this size fits in any empty pipe, so that writing it cannot block.
const SMALL_INPUT_BYTES: usize = 4096;
/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;

/// What the threads have seen. Each comes once; `Output` or `TooMuch`.
#[derive(Debug)]
pub(super) enum Report {
    /// The command has ended, and is not reaped yet.
    Exited,
    /// All of standard output.
    Output(Vec<u8>),
    /// Standard output is over its limit.
    TooMuch,
    /// The end of standard error.
    Complaint(Vec<u8>),
}

/// Takes hold of a child's pipes, gives it its input, and reports.
pub(super) fn attach(child: &mut Child, input: &Bytes, max_output: usize) -> io::Result<Receiver<Report>> {
    let missing = || io::Error::other("a pipe is missing");
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    let mut stdout = child.stdout.take().ok_or_else(missing)?;
    let mut stderr = child.stderr.take().ok_or_else(missing)?;
    let (sender, reports) = bounded(3);

    let report = sender.clone();
    Builder::new().name("exec-out".into()).spawn(move || {
        let seen = match read_up_to(&mut stdout, max_output) {
            Some(bytes) => Report::Output(bytes),
            None => Report::TooMuch,
        };
        // The receiver has given up, if it is gone. So below.
        let _ = report.send(seen);
    })?;
    let report = sender.clone();
    Builder::new().name("exec-err".into()).spawn(move || {
        let _ = report.send(Report::Complaint(read_tail(&mut stderr)));
    })?;
    let pid = Pid::from_child(child);
    Builder::new().name("exec-wait".into()).spawn(move || {
        // Not reaped, so that the number of its group stays its own.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
        let _ = sender.send(Report::Exited);
    })?;
    // A command need not read its input, so a broken pipe is no error; it shows in what the command does.
    if input.len() <= SMALL_INPUT_BYTES {
        let _ = stdin.write_all(input);
    } else {
        let input = input.clone();
        Builder::new().name("exec-in".into()).spawn(move || {
            let _ = stdin.write_all(&input);
        })?;
    }
    Ok(reports)
}

/// Everything, or `None` when it is more than `most` bytes.
fn read_up_to(from: &mut impl Read, most: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    // An output that cannot be read any more has ended.
    let _ = from.take(most as u64 + 1).read_to_end(&mut bytes);
    (bytes.len() <= most).then_some(bytes)
}

/// The last bytes, having read all of them.
fn read_tail(from: &mut impl Read) -> Vec<u8> {
    let mut tail = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                tail.extend_from_slice(&buffer[..count]);
                let surplus = tail.len().saturating_sub(TAIL_BYTES);
                tail.drain(..surplus);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    tail
}

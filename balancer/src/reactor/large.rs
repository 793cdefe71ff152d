//! Large frames: read into memory of their own, so that nothing of them is copied on the way.
//!
//! What comes is read into one buffer that all connections share, and what is unfinished of it is copied behind what
//! its connection keeps. For a small frame that is little; of a large one it would be most. Where a connection keeps the
//! head of a frame that says that it is large, the next reads go behind that head. With its last bytes comes the head
//! of the frame after it, so that a large one that follows is read in the same way from its beginning. Where nothing came
//! with them, the next frame is taken to be as large as the last. A head alone is not believed: the first large frame of a
//! connection is put together like a small one until 16 KiB of it have come.

use std::io;

use mio::net::TcpStream;

use super::connection::Connection;
use super::read_buffer::{READ_BYTES, SHORT_MEANS_BLOCKED};
use crate::dialect::Context;

/// Frames of this many bytes or more are large.
const LARGE_BYTES: usize = 32 * 1024;

/// Most bytes of memory that a frame is given because its head says so, on a connection on which a large one has come
/// before. Beyond, memory grows with what has come.
const AT_ONCE_BYTES: usize = 1 << 20;

/// Bytes that are read behind a frame, for the head of the next: the longest of all dialects' heads.
const HEAD_BYTES: usize = reparto_protocol::HEADER_BYTES;

/// Bytes that the allocator is shown once at the start.
const SHOWN_BYTES: usize = 4 << 20;

/// Has the allocator keep the memory of large frames for those that come after, if it learns from what it has seen: the
/// GNU C library's gives blocks back to the system that are as large as none it has freed before, and what is free at
/// the end of its heap beyond twice of that. Taken anew, every page costs a fault.
pub(super) fn show_allocator_large_frames() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(SHOWN_BYTES)));
}

impl Connection {
    /// The length of the frame that comes next, in bytes, if it is a large one and is to be read into memory of its own.
    /// `room` is how many bytes of memory such frames may be given before they have come.
    pub(super) fn expects_large(&self, context: &Context, room: usize) -> Option<usize> {
        let believed = self.last_large > 0 || self.input.len() >= LARGE_BYTES / 2;
        if !believed || self.parked {
            return None;
        }
        let known = match self.input.is_empty() {
            true => Some(self.last_large as usize).filter(|length| length + HEAD_BYTES <= room),
            false => self.session.known_frame_bytes(context, &self.input),
        };
        known.filter(|length| *length >= LARGE_BYTES && *length > self.input.len())
    }

    /// Makes room for some of a large frame: for all of it where `room` has as many bytes.
    fn make_room(&mut self, length: usize, room: usize) {
        let most = length + HEAD_BYTES;
        if self.input.capacity() - self.input.len() < LARGE_BYTES.min(most - self.input.len()) {
            let at_once = if most <= room { AT_ONCE_BYTES } else { LARGE_BYTES };
            let capacity = most.min(at_once.max(2 * self.input.len()));
            self.input.reserve_exact(capacity - self.input.len());
        }
    }

    /// Notes the length of a frame that has come, for the one after it.
    pub(super) fn note_length(&mut self, length: usize) {
        let is_large = length >= LARGE_BYTES && self.session.tells_lengths();
        self.last_large = u32::try_from(length).ok().filter(|_| is_large).unwrap_or(0);
    }

    /// Nothing came of a frame that was expected to be large.
    pub(super) fn expect_nothing(&mut self) {
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }

    /// Reads once, behind what is there of a large frame of this length. Says how many bytes came, [`READ_BYTES`] at
    /// most, and whether more may be there.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn read_large(&mut self, length: usize, room: usize) -> io::Result<(usize, bool)> {
        self.make_room(length, room);
        let asked = (self.input.capacity() - self.input.len()).min(READ_BYTES);
        let count = read_behind(&self.stream, &mut self.input, asked)?;
        Ok((count, count == asked || !SHORT_MEANS_BLOCKED))
    }
}

/// Reads this many bytes at most, for which there is memory.
fn read_behind(mut stream: &TcpStream, input: &mut Vec<u8>, asked: usize) -> io::Result<usize> {
    // Where it may fill all of the memory, that need not be set to anything before.
    #[cfg(unix)]
    if asked == input.capacity() - input.len() {
        return Ok(rustix::io::read(stream, rustix::buffer::spare_capacity(input))?);
    }
    let before = input.len();
    input.resize(before + asked, 0);
    let read = io::Read::read(&mut stream, &mut input[before..]);
    input.truncate(before + read.as_ref().copied().unwrap_or(0));
    read
}

#[cfg(test)]
mod tests {
    use super::super::connection::tests::{client, context};
    use super::*;

    fn head_of(length: usize) -> Vec<u8> {
        let mut head = Vec::new();
        head.extend_from_slice(&(u32::try_from(length).expect("small") - 4).to_be_bytes());
        head.extend_from_slice(&[reparto_protocol::FrameType::Task as u8, 0, 0, 0]);
        head.extend_from_slice(&7u64.to_be_bytes());
        head
    }

    /// Whether a large frame is expected, for which room is made then.
    fn prepare(connection: &mut Connection, room: usize) -> bool {
        let length = connection.expects_large(&context(), room);
        length.inspect(|length| connection.make_room(*length, room)).is_some()
    }

    #[test]
    fn a_head_alone_gets_no_memory() {
        let (mut connection, _listener) = client();
        connection.input = head_of(65_600);
        assert!(!prepare(&mut connection, 1 << 20));
        connection.input.resize(LARGE_BYTES / 2, 0);
        assert!(prepare(&mut connection, 1 << 20), "much of it has come");
    }

    #[test]
    fn after_a_large_frame_a_head_that_says_so_gets_memory_for_all_of_its_frame_and_the_next_head() {
        let (mut connection, _listener) = client();
        connection.note_length(LARGE_BYTES);
        connection.input = head_of(65_600);
        assert!(prepare(&mut connection, 1 << 20));
        assert_eq!(connection.input.capacity(), 65_600 + HEAD_BYTES);
    }

    #[test]
    fn memory_grows_with_what_has_come_where_a_head_is_not_believed() {
        for (room, least, most) in [(1 << 30, AT_ONCE_BYTES, AT_ONCE_BYTES), (0, LARGE_BYTES, LARGE_BYTES)] {
            let (mut connection, _listener) = client();
            connection.note_length(LARGE_BYTES);
            connection.input = head_of(15 << 20);
            assert!(prepare(&mut connection, room));
            assert!((least..=most).contains(&connection.input.capacity()));
            while connection.input.len() < 15 << 20 {
                let before = connection.input.len();
                assert!(prepare(&mut connection, room));
                assert!(connection.input.capacity() > before, "there is room for something");
                assert!(connection.input.capacity() <= most.max(2 * before), "and for no more than that");
                connection.input.resize(connection.input.capacity(), 0);
            }
            assert_eq!(connection.input.len(), (15 << 20) + HEAD_BYTES);
        }
    }

    #[test]
    fn after_a_large_frame_the_next_is_expected_to_be_as_large() {
        let (mut connection, _listener) = client();
        assert!(!prepare(&mut connection, 1 << 20), "nothing has come yet");
        connection.note_length(65_600);
        assert!(!prepare(&mut connection, 65_600), "there is no room for it");
        assert!(prepare(&mut connection, 1 << 20));
        assert_eq!(connection.input.capacity(), 65_600 + HEAD_BYTES);
        connection.expect_nothing();
        assert_eq!(connection.input.capacity(), 0, "an idle connection holds no buffer");
        connection.note_length(100);
        assert!(!prepare(&mut connection, 1 << 20));
    }

    #[test]
    fn small_frames_and_what_is_no_frame_are_not_large() {
        let (mut connection, _listener) = client();
        connection.note_length(LARGE_BYTES);
        for length in [100, LARGE_BYTES - 1, 1 << 30] {
            connection.input = head_of(length);
            assert!(!prepare(&mut connection, 1 << 20), "{length}");
        }
        connection.input = head_of(LARGE_BYTES);
        assert!(prepare(&mut connection, 1 << 20));
        connection.input.truncate(15);
        assert!(!prepare(&mut connection, 1 << 20), "its head is not whole");
    }

    #[test]
    fn a_read_takes_a_part_of_a_very_large_frame() {
        let (mut connection, listener) = client();
        let (mut peer, _) = listener.accept().expect("a connection");
        let sender = std::thread::spawn(move || {
            std::io::Write::write_all(&mut peer, &vec![7; 1 << 20]).expect("somebody reads");
        });
        let head = head_of(1 << 20);
        connection.input = head.clone();
        while connection.input.len() < 1 << 20 {
            match connection.read_large(1 << 20, 1 << 30) {
                Ok((count, _)) => assert!((1..=READ_BYTES).contains(&count)),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(connection.input.starts_with(&head));
        assert!(connection.input[HEAD_BYTES..].iter().all(|byte| *byte == 7));
        drop(connection);
        let _ = sender.join();
    }

    #[test]
    fn lines_do_not_tell_their_length() {
        let (mut connection, _listener) = client();
        connection.session = crate::dialect::Session::new(crate::dialect::Listener::Lines, &context(), None);
        connection.note_length(100_000);
        assert!(!prepare(&mut connection, 1 << 20));
    }
}

//! Bytes to be sent. Small ones are gathered; large payloads are sent from where they lie.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::ops::Range;

/// Payloads up to this many bytes are copied: that is cheaper than another entry of a vectored write.
const COPIED_BYTES: usize = 4 * 1024;

/// Most entries of a vectored write.
const MAX_SLICES: usize = 64;

/// What a connection has to send, in order.
#[derive(Debug, Default)]
pub struct Output {
    gathered: Vec<u8>,
    /// What was gathered behind this is no piece yet.
    gathered_from: usize,
    pieces: VecDeque<Piece>,
    /// The payload of every task that a client sends.
    payload: Vec<u8>,
    /// Where the bytes that a codec reads stand in the connection's input.
    input_start: usize,
    /// Pieces that are sent from the connection's input.
    input_pieces: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Gathered,
    Payload,
    Input,
}

#[derive(Debug)]
struct Piece {
    source: Source,
    range: Range<usize>,
}

impl Output {
    /// An output whose tasks have this payload.
    pub fn with_payload(payload: Vec<u8>) -> Self {
        Output { payload, ..Output::default() }
    }

    /// Adds bytes.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
    }

    /// Adds the payload, from its byte `from` on.
    #[inline]
    pub fn put_payload(&mut self, from: usize) {
        if self.payload.len() <= COPIED_BYTES {
            self.gathered.extend_from_slice(&self.payload[from..]);
        } else {
            self.put_piece(Piece { source: Source::Payload, range: from..self.payload.len() });
        }
    }

    /// Adds a part of what a codec has been given to read.
    #[inline]
    pub fn put_input(&mut self, input: &[u8], range: Range<usize>) {
        if range.len() <= COPIED_BYTES {
            self.gathered.extend_from_slice(&input[range]);
        } else {
            let range = self.input_start + range.start..self.input_start + range.end;
            self.put_piece(Piece { source: Source::Input, range });
            self.input_pieces += 1;
        }
    }

    fn put_piece(&mut self, piece: Piece) {
        self.end_gathered();
        self.pieces.push_back(piece);
    }

    /// Makes a piece of what was gathered since the last one.
    fn end_gathered(&mut self) {
        let range = self.gathered_from..self.gathered.len();
        if !range.is_empty() {
            self.gathered_from = range.end;
            self.pieces.push_back(Piece { source: Source::Gathered, range });
        }
    }

    /// All is sent.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.gathered.is_empty()
    }

    /// Sets where the bytes that a codec is about to read stand in the connection's input.
    pub(super) fn set_input_start(&mut self, start: usize) {
        self.input_start = start;
    }

    /// Some of it is to be sent from the connection's input, which must stay as it is until then.
    pub(super) fn holds_input(&self) -> bool {
        self.input_pieces > 0
    }

    /// Writes as much as one system call takes.
    pub(super) fn write_to(&mut self, writer: &mut impl Write, input: &[u8]) -> io::Result<()> {
        self.end_gathered();
        let bytes = |piece: &Piece| match piece.source {
            Source::Gathered => &self.gathered[piece.range.clone()],
            Source::Payload => &self.payload[piece.range.clone()],
            Source::Input => input.get(piece.range.clone()).unwrap_or_default(),
        };
        let written = match self.pieces.len() {
            0 => return Ok(()),
            1 => writer.write(bytes(&self.pieces[0]))?,
            _ => {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let mut count = 0;
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(bytes(piece));
                    count += 1;
                }
                writer.write_vectored(&slices[..count])?
            }
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.advance(written);
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if piece.range.len() > written {
                piece.range.start += written;
                return;
            }
            written -= piece.range.len();
            if piece.source == Source::Input {
                self.input_pieces -= 1;
            }
            self.pieces.pop_front();
        }
        self.forget_gathered();
    }

    fn forget_gathered(&mut self) {
        self.gathered.clear();
        self.gathered_from = 0;
    }

    /// Takes everything as one run of bytes. What it holds of an input is left out.
    pub(super) fn take_bytes(&mut self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.gathered.len());
        while !self.is_empty() && self.write_to(&mut all, &[]).is_ok() {}
        self.pieces.clear();
        self.forget_gathered();
        all
    }

    /// Everything that is to be sent, for tests of the codecs.
    #[cfg(test)]
    pub(super) fn bytes(&mut self, input: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        while !self.is_empty() {
            self.write_to(&mut all, input).unwrap();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes a call.
    struct Slow(Vec<u8>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(1000);
            self.0.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_leave_in_the_order_they_were_put_however_few_are_taken_at_once() {
        let payload = vec![b'p'; 2 * COPIED_BYTES];
        let input: Vec<u8> = (0..3 * COPIED_BYTES).map(|at| (at % 251) as u8).collect();
        let mut output = Output::with_payload(payload.clone());
        output.set_input_start(100);
        output.put(b"head");
        output.put_payload(8);
        output.put(b"middle");
        output.put_input(&input[100..], 0..2 * COPIED_BYTES);
        output.put(b"tail");
        assert!(output.holds_input());
        let mut slow = Slow(Vec::new());
        while !output.is_empty() {
            output.write_to(&mut slow, &input).unwrap();
        }
        let wanted =
            [b"head", &payload[8..], b"middle", &input[100..100 + 2 * COPIED_BYTES], b"tail"].concat();
        assert!(slow.0 == wanted);
        assert!(!output.holds_input());
    }

    #[test]
    fn small_payloads_leave_in_one_piece() {
        let mut output = Output::with_payload(vec![7; 64]);
        for _ in 0..10 {
            output.put(b"head");
            output.put_payload(0);
        }
        output.put_input(b"0123456789", 2..4);
        output.end_gathered();
        assert_eq!(output.pieces.len(), 1);
    }
}

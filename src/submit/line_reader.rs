//! Lines from a file or pipe, each up to a limit: a longer one is passed over, and costs no memory.

use std::io::{self, BufRead};

/// What a line was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// It stands in the buffer, without its line break.
    Whole,
    /// It was longer than the limit, and has been passed over.
    TooLong {
        /// Its length in bytes, without its line break.
        bytes: u64,
    },
}

/// Reads lines that end with `\n` or `\r\n`; the last one need not.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    input: R,
    limit: usize,
}

impl<R: BufRead> LineReader<R> {
    /// Reads lines of at most `limit` bytes, line breaks not counted.
    pub(crate) fn new(input: R, limit: usize) -> Self {
        LineReader { input, limit }
    }

    /// Reads the next line into `line`, which is emptied first. `None` at the end of the input.
    ///
    /// # Errors
    /// What reading the input says.
    pub(crate) fn next_line(&mut self, line: &mut Vec<u8>) -> io::Result<Option<Line>> {
        line.clear();
        // The limit, and room for the carriage return that is not counted.
        let most = self.limit.saturating_add(1);
        let (mut bytes, mut last) = (0u64, None);
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() && bytes == 0 {
                return Ok(None);
            }
            let end = line_feed(available);
            let part = &available[..end.unwrap_or(available.len())];
            line.extend_from_slice(&part[..part.len().min(most - line.len())]);
            bytes += part.len() as u64;
            last = part.last().copied().or(last);
            let consumed = part.len() + usize::from(end.is_some());
            let ended = end.is_some() || available.is_empty();
            self.input.consume(consumed);
            if ended {
                // Without a line break a carriage return is the last line's own.
                let bytes = bytes - u64::from(end.is_some() && last == Some(b'\r'));
                if bytes > self.limit as u64 {
                    line.clear();
                    return Ok(Some(Line::TooLong { bytes }));
                }
                line.truncate(bytes as usize);
                return Ok(Some(Line::Whole));
            }
        }
    }
}

fn line_feed(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn lines(text: &[u8], limit: usize, buffer: usize) -> Vec<Result<Vec<u8>, u64>> {
        let mut reader = LineReader::new(BufReader::with_capacity(buffer, text), limit);
        let (mut line, mut all) = (Vec::new(), Vec::new());
        while let Some(what) = reader.next_line(&mut line).unwrap() {
            all.push(match what {
                Line::Whole => Ok(line.clone()),
                Line::TooLong { bytes } => Err(bytes),
            });
            assert!(line.capacity() < 64 + 2 * limit, "memory grows with the limit, not with the line");
        }
        all
    }

    #[test]
    fn lines_end_with_a_line_feed_with_or_without_a_carriage_return_and_the_last_with_nothing() {
        for buffer in 1..20 {
            let all = lines(b"one\ntwo\r\n\n\r\nfi\rve\nlast", 100, buffer);
            let expected: [&[u8]; 6] = [b"one", b"two", b"", b"", b"fi\rve", b"last"];
            assert_eq!(all, expected.map(|line| Ok(line.to_vec())), "with a buffer of {buffer}");
            assert_eq!(lines(b"one\n", 100, buffer), [Ok(b"one".to_vec())]);
            assert_eq!(lines(b"", 100, buffer), []);
            assert_eq!(lines(b"\n", 100, buffer), [Ok(vec![])]);
            assert_eq!(lines(b"kept\r", 100, buffer), [Ok(b"kept\r".to_vec())]);
        }
    }

    #[test]
    fn a_line_over_the_limit_is_passed_over_and_the_next_one_is_whole() {
        let long = vec![b'x'; 10_000];
        let text = [b"12345\n", &long[..], b"\n12345\r\n123456\r\n", &long[..]].concat();
        for buffer in [1, 7, 64, 100_000] {
            let whole = || Ok(b"12345".to_vec());
            assert_eq!(lines(&text, 5, buffer), [whole(), Err(10_000), whole(), Err(6), Err(10_000)]);
        }
    }
}

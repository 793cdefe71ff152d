//! Bytes that many things begin with, made ready to be compared with each of them.

/// Bytes that frames' bodies begin with, such as the fields that they have in common.
///
/// ```
/// use reparto_protocol::Beginning;
/// let upper = Beginning::new(b"upper\0");
/// assert!(upper.begins(b"upper\0hola") && upper.begins(b"upper\0"));
/// assert!(!upper.begins(b"upper") && !upper.begins(b"lower\0 and so on"));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Beginning<'a> {
    bytes: &'a [u8],
    /// Where they are few: as a number's highest, and which bits of it those are.
    as_number: Option<(u128, u128)>,
}

impl<'a> Beginning<'a> {
    /// These bytes, ready to be compared.
    #[inline]
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut padded = [0; 16];
        let mut as_number = None;
        if let (Some(there), false) = (padded.get_mut(..bytes.len()), bytes.is_empty()) {
            there.copy_from_slice(bytes);
            as_number = Some((u128::from_be_bytes(padded), u128::MAX << (8 * (16 - bytes.len()))));
        }
        Beginning { bytes, as_number }
    }

    /// How many bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none: everything begins so.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether `data` begins with them. Comparing a few bytes as a number takes a fraction of what a call for it does.
    #[inline]
    #[must_use]
    pub fn begins(&self, data: &[u8]) -> bool {
        if self.bytes.is_empty() {
            return true;
        }
        match (self.as_number, data.first_chunk::<16>()) {
            (Some((number, mask)), Some(chunk)) => u128::from_be_bytes(*chunk) & mask == number,
            _ => data.starts_with(self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_compared_as_they_would_be_one_by_one_however_many_there_are() {
        let bytes: Vec<u8> = (1..=40).collect();
        for length in 0..=20 {
            let beginning = Beginning::new(&bytes[..length]);
            assert_eq!((beginning.len(), beginning.is_empty()), (length, length == 0));
            for there in 0..=40 {
                let mut data = bytes[..there].to_vec();
                assert_eq!(beginning.begins(&data), there >= length, "{length} of {there}");
                if let Some(last) = length.checked_sub(1).and_then(|at| data.get_mut(at)) {
                    *last ^= 0x80;
                    assert!(!beginning.begins(&data), "another byte, {length} of {there}");
                }
            }
        }
    }
}

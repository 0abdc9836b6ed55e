//! The protobuf wire format, read without copies and written for small answers.
//!
//! Safe on any bytes: lengths are checked before use, nothing recurses, nothing allocates.

use crate::codec::Malformed;

/// One field's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    #[inline]
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Wire::Bytes(b) => Ok(b),
            _ => Err(mismatch()),
        }
    }

    #[inline]
    pub fn varint(self) -> Result<u64, Malformed> {
        match self {
            Wire::Varint(v) => Ok(v),
            _ => Err(mismatch()),
        }
    }

    #[inline]
    pub fn fixed64(self) -> Result<u64, Malformed> {
        match self {
            Wire::Fixed64(v) => Ok(v),
            _ => Err(mismatch()),
        }
    }

    #[inline]
    pub fn fixed32(self) -> Result<u32, Malformed> {
        match self {
            Wire::Fixed32(v) => Ok(v),
            _ => Err(mismatch()),
        }
    }
}

#[cold]
fn mismatch() -> Malformed {
    Malformed("invalid protobuf: a field has an unexpected wire type".to_owned())
}

#[cold]
fn truncated() -> Malformed {
    Malformed("invalid protobuf: message ends inside a field".to_owned())
}

/// The fields of one message, in the order they were sent.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The next number of a packed list.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        if let [b @ 0..0x80, rest @ ..] = self.bytes {
            self.bytes = rest;
            return Ok(u64::from(*b));
        }
        let mut value = 0;
        for (i, b) in self.bytes.iter().enumerate().take(10) {
            value |= u64::from(b & 0x7f) << (7 * i);
            if *b < 0x80 {
                self.bytes = &self.bytes[i + 1..];
                return Ok(value);
            }
        }
        Err(truncated())
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.bytes.split_at_checked(len).ok_or_else(truncated)?;
        self.bytes = rest;
        Ok(head)
    }

    /// The next field's number and value; `None` at the end.
    #[inline(always)]
    pub fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, Malformed> {
        // Nearly all fields, where they are read: a tag of one byte, then fewer than 16 KiB with their length or eight bytes.
        match self.bytes {
            [tag @ 0x08..0x80, rest @ ..] if tag & 7 == 2 => {
                let (len, rest) = match rest {
                    [n @ 0..0x80, rest @ ..] => (usize::from(*n), rest),
                    [low, high @ 0..0x80, rest @ ..] => (usize::from(low & 0x7f) | usize::from(*high) << 7, rest),
                    _ => return self.any_field(),
                };
                if let Some((value, rest)) = rest.split_at_checked(len) {
                    self.bytes = rest;
                    return Ok(Some((u32::from(tag >> 3), Wire::Bytes(value))));
                }
            }
            [tag @ 0x08..0x80, rest @ ..] if tag & 7 == 1 => {
                if let Some((value, rest)) = rest.split_first_chunk() {
                    self.bytes = rest;
                    return Ok(Some((u32::from(tag >> 3), Wire::Fixed64(u64::from_le_bytes(*value)))));
                }
            }
            _ => {}
        }
        self.any_field()
    }

    /// [`Reader::field`] of any field, and what is wrong with it.
    #[inline(never)]
    fn any_field(&mut self) -> Result<Option<(u32, Wire<'a>)>, Malformed> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0 && *n < 1 << 29);
        let number = number.ok_or_else(|| Malformed("invalid protobuf: bad field number".to_owned()))?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes"))),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| truncated())?;
                Wire::Bytes(self.take(len)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes"))),
            other => return Err(Malformed(format!("invalid protobuf: wire type {other} is not supported"))),
        };
        Ok(Some((number, value)))
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A length-delimited field.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub fn put_int(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_read_alike_on_the_short_way_and_the_long(
            fields in proptest::collection::vec(
                (prop_oneof![0..20u8, any::<u8>()], prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..12),
                    proptest::collection::vec(any::<u8>(), 120..140),
                ]),
                0..4,
            ),
            cut in 0..8usize,
        ) {
            let mut bytes = Vec::new();
            for (tag, value) in &fields {
                bytes.push(*tag);
                if tag & 7 == 2 {
                    put_varint(&mut bytes, value.len() as u64);
                }
                bytes.extend_from_slice(value);
            }
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let (mut short, mut long) = (Reader::new(&bytes), Reader::new(&bytes));
            loop {
                let (a, b) = (short.field(), long.any_field());
                prop_assert_eq!(format!("{a:?}"), format!("{b:?}"));
                prop_assert_eq!(short.bytes.len(), if a.is_ok() { long.bytes.len() } else { short.bytes.len() });
                if !matches!(a, Ok(Some(_))) {
                    break;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut r = Reader::new(&bytes);
            while let Ok(Some(_)) = r.field() {}
        }

        #[test]
        fn fields_read_back(n in 1u32..1 << 28, v in any::<u64>(), b in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            put_int(&mut out, n, v);
            put_bytes(&mut out, n, &b);
            let mut r = Reader::new(&out);
            prop_assert_eq!(r.field().unwrap(), Some((n, Wire::Varint(v))));
            prop_assert_eq!(r.field().unwrap(), Some((n, Wire::Bytes(&b))));
            prop_assert_eq!(r.field().unwrap(), None);
        }
    }
}

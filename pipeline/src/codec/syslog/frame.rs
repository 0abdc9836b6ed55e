//! Messages on a stream: octet counting (`LEN SP MSG`) or one a line, told apart message by message (RFC 6587).

use bytes::{Buf, Bytes, BytesMut};

/// Digits of an octet count: more is no count.
const COUNT_DIGITS_MAX: usize = 7;

/// Cuts a stream into messages.
#[derive(Debug)]
pub struct Frames {
    bytes: BytesMut,
    message_bytes_max: usize,
    skip: Skip,
    /// Where the search for the end of a line goes on.
    searched: usize,
}

/// The rest of a message that was too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    Nothing,
    Bytes(usize),
    Line,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Bytes,
    /// It was longer than is taken, or the stream ended within it.
    pub cut: bool,
}

impl Frames {
    pub fn new(message_bytes_max: usize) -> Self {
        Frames {
            bytes: BytesMut::new(),
            message_bytes_max: message_bytes_max.max(1),
            skip: Skip::Nothing,
            searched: 0,
        }
    }

    /// Where what is read is put. Take all of [`Frames::next`] before more is read, so that it stays bounded.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The next whole message; `None`: more must be read.
    #[expect(clippy::should_implement_trait, reason = "there may be more after `None`")]
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            match self.skip {
                Skip::Nothing => {}
                Skip::Bytes(n) => {
                    let here = n.min(self.bytes.len());
                    self.bytes.advance(here);
                    self.skip = if here < n { Skip::Bytes(n - here) } else { Skip::Nothing };
                    if here < n {
                        return None;
                    }
                }
                Skip::Line => match line_end(&self.bytes) {
                    Some(end) => {
                        self.bytes.advance(end + 1);
                        self.skip = Skip::Nothing;
                    }
                    None => {
                        self.bytes.clear();
                        return None;
                    }
                },
            }
            if self.searched == 0 {
                let blank = self.bytes.iter().take_while(|b| matches!(b, b'\n' | b'\r' | 0)).count();
                self.bytes.advance(blank);
            }
            let (len, digits) = match count(&self.bytes) {
                Count::Unknown => return None,
                Count::Is { len, digits } => (len, digits),
                Count::None => return self.line(),
            };
            let taken = len.min(self.message_bytes_max);
            if self.bytes.len() < digits + 1 + taken {
                return None;
            }
            self.bytes.advance(digits + 1);
            let bytes = self.take(taken);
            if taken < len {
                self.skip = Skip::Bytes(len - taken);
            }
            if taken > 0 {
                return Some(Frame { bytes, cut: taken < len });
            }
        }
    }

    /// What is left when the stream has ended.
    pub fn last(mut self) -> Option<Frame> {
        if self.skip != Skip::Nothing {
            return None;
        }
        if let Count::Is { digits, .. } = count(&self.bytes) {
            self.bytes.advance(digits + 1);
        }
        let bytes = self.take(self.bytes.len().min(self.message_bytes_max));
        (!bytes.is_empty()).then_some(Frame { bytes, cut: true })
    }

    fn line(&mut self) -> Option<Frame> {
        let end = line_end(&self.bytes[self.searched..]).map(|at| at + self.searched);
        let whole = end.filter(|end| *end <= self.message_bytes_max);
        if let Some(end) = whole {
            self.searched = 0;
            let bytes = self.take(end);
            self.bytes.advance(1);
            return Some(Frame { bytes, cut: false });
        }
        if self.bytes.len() <= self.message_bytes_max {
            self.searched = self.bytes.len();
            return None;
        }
        self.searched = 0;
        self.skip = Skip::Line;
        Some(Frame { bytes: self.take(self.message_bytes_max), cut: true })
    }

    /// A copy: a message that waits must not hold the memory of those around it.
    fn take(&mut self, len: usize) -> Bytes {
        let bytes = Bytes::copy_from_slice(&self.bytes[..len]);
        self.bytes.advance(len);
        bytes
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    memchr::memchr2(b'\n', 0, bytes)
}

enum Count {
    /// `digits` digits, a space and `<` are there.
    Is {
        len: usize,
        digits: usize,
    },
    /// The bytes so far may become one.
    Unknown,
    None,
}

/// A count counts only before a message with a priority: a line may begin with a number.
fn count(bytes: &[u8]) -> Count {
    let digits = bytes.iter().take(COUNT_DIGITS_MAX + 1).take_while(|b| b.is_ascii_digit()).count();
    match (bytes.first(), digits) {
        (None, _) => return Count::Unknown,
        (Some(b'0'), _) | (_, 0) => return Count::None,
        (_, digits) if digits > COUNT_DIGITS_MAX => return Count::None,
        _ => {}
    }
    match bytes[digits..] {
        [] | [b' '] => Count::Unknown,
        [b' ', b'<', ..] => {
            let len = bytes[..digits].iter().fold(0, |n, b| n * 10 + usize::from(b - b'0'));
            Count::Is { len, digits }
        }
        _ => Count::None,
    }
}

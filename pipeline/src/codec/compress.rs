//! The one decompressor for everything that is pushed: every encoding, streaming, with a cap on what comes out.
//!
//! **For** turning a compressed body into bytes at a cost bounded by the cap (about twice the cap in memory while the
//! output grows), whatever the body claims. **Not for** compressing answers.

use std::io::{self, Read};

use bytes::Bytes;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    /// zlib, or the bare deflate stream that some senders call `deflate`.
    Deflate,
    Zstd,
    /// Framed or block, told apart by the frame's magic.
    Snappy,
    /// The block format only, as remote write and Loki's protobuf use it.
    SnappyBlock,
    Lz4,
}

impl Encoding {
    /// From a `Content-Encoding` or `grpc-encoding` value; `None`: not known.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.trim();
        let known = [
            ("", Encoding::Identity),
            ("identity", Encoding::Identity),
            ("gzip", Encoding::Gzip),
            ("x-gzip", Encoding::Gzip),
            ("deflate", Encoding::Deflate),
            ("zlib", Encoding::Deflate),
            ("zstd", Encoding::Zstd),
            ("snappy", Encoding::Snappy),
            ("x-snappy-framed", Encoding::Snappy),
            ("lz4", Encoding::Lz4),
        ];
        known.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, e)| e)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    #[error("body inflates to more than {limit} bytes; send smaller requests")]
    TooLarge { limit: usize },
    #[error("body is not valid {what}: {reason}")]
    Corrupt { what: &'static str, reason: String },
}

/// Bytes the first read may bring; doubled as the output grows.
const FIRST_READ: usize = 64 << 10;

/// No snappy block is denser: three bytes copy at most 64.
const SNAPPY_RATIO_MAX: usize = 24;

const SNAPPY_FRAME_MAGIC: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// The body's bytes, at most `limit` of them. An uncompressed body is passed on without a copy.
pub fn inflate(encoding: Encoding, body: Bytes, limit: usize) -> Result<Bytes, InflateError> {
    match encoding {
        Encoding::Identity if body.len() > limit => Err(InflateError::TooLarge { limit }),
        Encoding::Identity => Ok(body),
        _ if is_snappy_block(encoding, &body) => snappy_block(&body, limit),
        _ => read_capped(reader(encoding, &body, limit)?, name(encoding), body.len(), limit),
    }
}

/// As [`inflate`], but what inflates to more than `limit` is found out first, in little memory; twice the work.
pub fn inflate_doubtful(encoding: Encoding, body: Bytes, limit: usize) -> Result<Bytes, InflateError> {
    if encoding != Encoding::Identity && !is_snappy_block(encoding, &body) {
        let mut reader = reader(encoding, &body, limit)?;
        let mut scratch = vec![0; FIRST_READ];
        let mut total = 0;
        loop {
            match read_some(&mut *reader, &mut scratch) {
                Ok(0) => break,
                Ok(n) => total += n,
                Err(e) => return Err(unreadable(name(encoding), &e, limit)),
            }
            if total > limit {
                return Err(InflateError::TooLarge { limit });
            }
        }
    }
    inflate(encoding, body, limit)
}

fn is_snappy_block(encoding: Encoding, body: &[u8]) -> bool {
    // Nothing is a framed stream without frames.
    encoding == Encoding::SnappyBlock
        || encoding == Encoding::Snappy && !body.is_empty() && !body.starts_with(SNAPPY_FRAME_MAGIC)
}

fn reader(encoding: Encoding, body: &[u8], limit: usize) -> Result<Box<dyn Read + '_>, InflateError> {
    Ok(match encoding {
        Encoding::Identity | Encoding::SnappyBlock => Box::new(body),
        Encoding::Snappy => Box::new(snap::read::FrameDecoder::new(body)),
        Encoding::Gzip => Box::new(flate2::read::MultiGzDecoder::new(body)),
        Encoding::Deflate if is_zlib(body) => Box::new(flate2::read::ZlibDecoder::new(body)),
        Encoding::Deflate => Box::new(flate2::read::DeflateDecoder::new(body)),
        Encoding::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(body)),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(body).map_err(|e| corrupt("zstd", &e))?;
            // A frame may ask for a window of gigabytes: not for more than the cap (8 MiB at least, as RFC 8878 wants).
            let log = usize::BITS - limit.max(1).leading_zeros();
            decoder.window_log_max(log.clamp(23, 27)).map_err(|e| corrupt("zstd", &e))?;
            Box::new(decoder)
        }
    })
}

fn name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Identity => "identity",
        Encoding::Gzip => "gzip",
        Encoding::Deflate => "deflate",
        Encoding::Zstd => "zstd",
        Encoding::Snappy | Encoding::SnappyBlock => "snappy",
        Encoding::Lz4 => "lz4",
    }
}

fn corrupt(what: &'static str, e: &dyn std::fmt::Display) -> InflateError {
    InflateError::Corrupt { what, reason: e.to_string() }
}

fn unreadable(what: &'static str, e: &io::Error, limit: usize) -> InflateError {
    // What zstd says of a window over the limit set above.
    if e.to_string().contains("too much memory") { InflateError::TooLarge { limit } } else { corrupt(what, e) }
}

/// RFC 1950: method 8, and the first two bytes are a multiple of 31.
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [a, b, ..] if a & 0x0f == 8 && (u16::from(*a) << 8 | u16::from(*b)).is_multiple_of(31))
}

fn snappy_block(body: &[u8], limit: usize) -> Result<Bytes, InflateError> {
    let len = snap::raw::decompress_len(body).map_err(|e| corrupt("snappy", &e))?;
    if len > limit {
        return Err(InflateError::TooLarge { limit });
    }
    if len > body.len().saturating_mul(SNAPPY_RATIO_MAX) {
        return Err(InflateError::Corrupt { what: "snappy", reason: "corrupt input".to_owned() });
    }
    snap::raw::Decoder::new().decompress_vec(body).map(Bytes::from).map_err(|e| corrupt("snappy", &e))
}

fn read_capped(
    mut reader: Box<dyn Read + '_>,
    what: &'static str,
    sent: usize,
    limit: usize,
) -> Result<Bytes, InflateError> {
    let mut out = Vec::with_capacity(sent.saturating_mul(4).clamp(FIRST_READ.min(limit), limit));
    let mut filled = 0;
    loop {
        if filled == out.len() {
            if filled == limit {
                return match read_some(&mut *reader, &mut [0]) {
                    Ok(0) => Ok(Bytes::from(out)),
                    Ok(_) => Err(InflateError::TooLarge { limit }),
                    Err(e) => Err(corrupt(what, &e)),
                };
            }
            let grown = (filled * 2).clamp(FIRST_READ, out.capacity().max(FIRST_READ).max(filled * 2)).min(limit);
            out.reserve_exact(grown - filled);
            out.resize(grown, 0);
        }
        match read_some(&mut *reader, &mut out[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) => return Err(unreadable(what, &e, limit)),
        }
    }
    out.truncate(filled);
    Ok(Bytes::from(out))
}

fn read_some(reader: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(into) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn deflate(encoding: Encoding, data: &[u8]) -> Bytes {
        let out = match encoding {
            Encoding::Identity => data.to_vec(),
            Encoding::Gzip => {
                let mut w = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                w.write_all(data).unwrap();
                w.finish().unwrap()
            }
            Encoding::Deflate => {
                let mut w = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                w.write_all(data).unwrap();
                w.finish().unwrap()
            }
            Encoding::Zstd => zstd::stream::encode_all(data, 1).unwrap(),
            Encoding::Snappy => {
                let mut w = snap::write::FrameEncoder::new(Vec::new());
                w.write_all(data).unwrap();
                w.into_inner().unwrap()
            }
            Encoding::SnappyBlock => snap::raw::Encoder::new().compress_vec(data).unwrap(),
            Encoding::Lz4 => {
                let mut w = lz4_flex::frame::FrameEncoder::new(Vec::new());
                w.write_all(data).unwrap();
                w.finish().unwrap()
            }
        };
        Bytes::from(out)
    }

    const ALL: [Encoding; 7] = [
        Encoding::Identity,
        Encoding::Gzip,
        Encoding::Deflate,
        Encoding::Zstd,
        Encoding::Snappy,
        Encoding::SnappyBlock,
        Encoding::Lz4,
    ];

    #[test]
    fn every_encoding_reads_back_up_to_the_cap_and_not_a_byte_more() {
        let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        for e in ALL {
            let packed = deflate(e, &data);
            assert_eq!(inflate(e, packed.clone(), data.len()).unwrap(), data, "{e:?}");
            assert_eq!(inflate(e, packed.clone(), usize::MAX >> 8).unwrap(), data, "{e:?}");
            assert_eq!(inflate_doubtful(e, packed.clone(), data.len()).unwrap(), data, "{e:?}");
            let doubtful = inflate_doubtful(e, packed.clone(), data.len() - 1);
            assert!(matches!(doubtful, Err(InflateError::TooLarge { .. })), "{e:?} over the cap");
            assert!(
                matches!(inflate(e, packed, data.len() - 1), Err(InflateError::TooLarge { .. })),
                "{e:?} over the cap"
            );
            assert_eq!(inflate(e, deflate(e, b""), 10).unwrap(), Bytes::new(), "{e:?} empty");
        }
        let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        raw.write_all(&data).unwrap();
        assert_eq!(inflate(Encoding::Deflate, raw.finish().unwrap().into(), 1 << 20).unwrap(), data);
        assert_eq!(inflate(Encoding::Snappy, deflate(Encoding::SnappyBlock, &data), 1 << 20).unwrap(), data);
    }

    #[test]
    fn a_snappy_length_that_cannot_be_true_allocates_nothing() {
        let body = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]);
        assert!(matches!(inflate(Encoding::SnappyBlock, body.clone(), 64 << 20), Err(InflateError::TooLarge { .. })));
        assert!(matches!(inflate(Encoding::SnappyBlock, body, 8 << 30), Err(InflateError::Corrupt { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_and_damaged_bytes_never_panic_or_pass_the_cap(
            noise in proptest::collection::vec(any::<u8>(), 0..400),
            data in proptest::collection::vec(any::<u8>(), 0..400),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            for e in ALL {
                if let Ok(out) = inflate(e, Bytes::from(noise.clone()), 1000) { prop_assert!(out.len() <= 1000); }
                let mut packed = deflate(e, &data).to_vec();
                if !packed.is_empty() {
                    let i = at.index(packed.len());
                    packed[i] ^= 1 << bit;
                }
                if let Ok(out) = inflate(e, Bytes::from(packed), 1000) { prop_assert!(out.len() <= 1000); }
            }
        }
    }
}

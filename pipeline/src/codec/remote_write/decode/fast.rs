//! Samples of series that the store knows: their labels are neither read nor written.
//!
//! Whatever has more to it than samples of today that may be taken goes the long way, which says what is wrong with it.

use super::{Decoder, point};
use crate::codec::{
    Malformed,
    otlp::wire::{Reader, Wire},
    remote_write::known::Series,
};

/// Tag of a 1.0 series' samples: what mostly follows its labels.
const SAMPLE_TAG: u8 = 2 << 3 | 2;

impl<'a> Decoder<'a, '_> {
    /// Takes the samples of a 1.0 series. `false`: it is for the long way.
    #[inline]
    pub(super) fn known_v1(&mut self, bytes: &'a [u8]) -> Result<bool, Malformed> {
        let Some(store_has) = &self.store_has else { return Ok(false) };
        // The series that is likely to come: its labels are as long as they were, and nothing of them needs to be read.
        let likely = store_has.at(self.next).and_then(|series| {
            let (labels, rest) = bytes.split_at_checked(series.len as usize)?;
            (rest.first() == Some(&SAMPLE_TAG) && store_has.hash(labels) == series.labels).then_some((*series, rest))
        });
        let (id, rest) = match likely {
            Some((series, rest)) => {
                self.next += 1;
                self.present = Some(series);
                (series.id, Reader::new(rest))
            }
            None => {
                let mut r = Reader::new(bytes);
                let rest = loop {
                    let before = r;
                    match r.field()? {
                        Some((1, _)) => {}
                        Some(_) => break before,
                        None => return Ok(false),
                    }
                };
                let len = bytes.len() - rest.len();
                let labels = store_has.hash(&bytes[..len]);
                self.present = Some(Series { labels, len: u32::try_from(len).unwrap_or(0), id: 0 });
                let Some(id) = store_has.id(labels, &mut self.next) else { return Ok(false) };
                (id, rest)
            }
        };
        self.samples.clear();
        let mut r = rest;
        while let Some((number, wire)) = r.field()? {
            if number != 2 {
                return Ok(false);
            }
            self.samples.push(point(wire.bytes()?, false)?);
        }
        Ok(self.take_samples(id, None))
    }

    /// As [`Decoder::known_v1`], of 2.0: the references of a series are other numbers in each request, the texts behind them
    /// the same. Its metadata belong to what is known, so that new ones are told.
    pub(super) fn known_v2(&mut self, bytes: &'a [u8]) -> Result<bool, Malformed> {
        let (mut metadata, mut created) = (None, None);
        self.refs.clear();
        self.samples.clear();
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match number {
                1 => self.refs(wire)?,
                2 => self.samples.push(point(wire.bytes()?, true)?),
                5 if metadata.is_none() => metadata = Some(wire.bytes()?),
                6 => created = Some(wire.varint()? as i64).filter(|ms| *ms != 0),
                _ => return Ok(false),
            }
        }
        if self.samples.is_empty() || !self.hash_labels(metadata) {
            return Ok(false);
        }
        let Some(store_has) = &self.store_has else { return Ok(false) };
        let labels = store_has.hash_symbols(&self.label_hashes);
        self.present = Some(Series { labels, len: 0, id: 0 });
        let Some(id) = store_has.id(labels, &mut self.next) else { return Ok(false) };
        Ok(self.take_samples(id, created))
    }

    /// Puts the hashes of metadata and labels into `label_hashes`; `false` when some symbol is not there or not a
    /// text, or the metadata are none.
    fn hash_labels(&mut self, metadata: Option<&[u8]>) -> bool {
        self.label_hashes.clear();
        let (mut kind, mut help, mut unit) = (0, 0, 0);
        let mut r = Reader::new(metadata.unwrap_or_default());
        loop {
            match r.field() {
                Ok(Some((1, Wire::Varint(v)))) => kind = v,
                Ok(Some((3, Wire::Varint(v)))) => help = v,
                Ok(Some((4, Wire::Varint(v)))) => unit = v,
                Ok(None) => break,
                _ => return false,
            }
        }
        self.label_hashes.extend_from_slice(&kind.to_le_bytes());
        // No metadata are those of empty texts: symbol 0 is one.
        let told = [help, unit].map(|v| u32::try_from(v).unwrap_or(u32::MAX));
        let labels = std::mem::take(&mut self.refs);
        let all = told.iter().chain(&labels).all(|at| self.hash_symbol(*at));
        self.refs = labels;
        all
    }

    #[inline]
    fn hash_symbol(&mut self, at: u32) -> bool {
        let Some(store_has) = &self.store_has else { return false };
        let Some(hash) = self.symbol_hashes.get_mut(at as usize) else { return false };
        let hash = match hash {
            Some(hash) => *hash,
            None => match self.symbols[at as usize] {
                Some(text) => *hash.insert(store_has.hash(text.as_bytes())),
                None => return false,
            },
        };
        hash.iter().for_each(|half| self.label_hashes.extend_from_slice(&half.to_le_bytes()));
        true
    }

    /// `false`: not all of them may be taken, or they are not of the day that the series is known on.
    #[inline]
    fn take_samples(&mut self, id: i64, created: Option<i64>) -> bool {
        let Some(store_has) = &self.store_has else { return false };
        let n = self.samples.len();
        let timely = |ms: i64| ms >= self.oldest && ms <= self.newest && store_has.is_of_day(ms);
        if !self.samples.iter().all(|(ms, ..)| timely(*ms))
            || (self.out.samples + self.out.histograms) as usize + n > self.limits.records_max
        {
            return false;
        }
        for (ms, value, start) in &self.samples {
            self.rows.sample_of_known(id, *ms, Some(*start).filter(|s| *s != 0).or(created), *value);
        }
        self.met += n as u64;
        self.out.samples += n as u64;
        self.out.of_known += n as u64;
        if self.rows.len() >= self.limits.batch_rows_max {
            self.flush();
        }
        true
    }
}

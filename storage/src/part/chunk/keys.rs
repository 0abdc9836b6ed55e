//! A column chunk of few distinct values, as runs of keys into its dictionary.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray, Int8Array, Int16Array, Int32Array, Int64Array, StringArray},
    datatypes::{ArrowPrimitiveType, DataType, Int8Type, Int16Type, Int32Type, Int64Type},
};
use parquet::data_type::ByteArray;
use xxhash_rust::xxh3::xxh3_64;

use crate::part::sort::MixedMap;

/// Stands for null among keys.
pub(super) const NULL: u32 = u32::MAX;
/// Stands for a value of a batch's dictionary that no row has used yet.
const UNSEEN: u32 = u32::MAX - 1;

/// Numbers below it are found without hashing.
const SMALL_END: usize = 4096;

/// Bytes of a text that statistics keep.
const BOUND_BYTES: usize = 64;

/// Distinct values in order of appearance.
enum Values {
    Texts {
        /// As on the dictionary page: length and bytes of each.
        page: Vec<u8>,
        /// Where each text ends in `page`.
        ends: Vec<u32>,
        by_hash: MixedMap<u64, u32>,
        /// The dictionary of the batch before, and the keys of its values here.
        known: Option<(ArrayRef, Vec<u32>)>,
    },
    Integers {
        /// On disk, 4 or 8.
        width: usize,
        values: Vec<i64>,
        by_value: MixedMap<i64, u32>,
        /// The same for those of 0 to [`SMALL_END`], by themselves: what is left of a microsecond has a thousand, in any order.
        small: Vec<u32>,
    },
}

impl Values {
    fn integers(width: usize) -> Self {
        Values::Integers { width, values: Vec::new(), by_value: MixedMap::default(), small: Vec::new() }
    }
}

/// Rows of one column, gathered until the row group is complete.
pub(super) struct Keys {
    kind: DataType,
    values: Values,
    /// Key and rows that follow each other.
    runs: Vec<(u32, u32)>,
    rows: usize,
    nulls: usize,
}

/// Smallest and largest value as Parquet wants them.
pub(super) enum Bounds {
    Int32(i32, i32),
    Int64(i64, i64),
    /// The largest is absent where no short text is above all.
    Text {
        min: ByteArray,
        min_exact: bool,
        max: Option<ByteArray>,
        max_exact: bool,
    },
}

impl Keys {
    /// `None`: values of this type are not kept so.
    pub(super) fn new(kind: &DataType) -> Option<Self> {
        let values = match kind {
            DataType::Dictionary(k, v) if **k == DataType::Int32 && **v == DataType::Utf8 => {
                Values::Texts { page: Vec::new(), ends: Vec::new(), by_hash: MixedMap::default(), known: None }
            }
            DataType::Int8 | DataType::Int16 | DataType::Int32 => Values::integers(4),
            DataType::Int64 => Values::integers(8),
            _ => return None,
        };
        Some(Keys { kind: kind.clone(), values, runs: Vec::new(), rows: 0, nulls: 0 })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn nulls(&self) -> usize {
        self.nulls
    }

    pub(super) fn runs(&self) -> &[(u32, u32)] {
        &self.runs
    }

    pub(super) fn distinct(&self) -> usize {
        match &self.values {
            Values::Texts { ends, .. } => ends.len(),
            Values::Integers { values, .. } => values.len(),
        }
    }

    /// Bytes of the dictionary page.
    pub(super) fn dictionary_bytes(&self) -> usize {
        match &self.values {
            Values::Texts { page, .. } => page.len(),
            Values::Integers { width, values, .. } => width * values.len(),
        }
    }

    pub(super) fn push_nulls(&mut self, rows: usize) {
        self.nulls += rows;
        self.run(NULL, rows);
    }

    #[inline]
    fn run(&mut self, key: u32, rows: usize) {
        self.rows += rows;
        match self.runs.last_mut() {
            Some((last, n)) if *last == key => *n += rows as u32,
            _ if rows == 0 => {}
            _ => self.runs.push((key, rows as u32)),
        }
    }

    /// `array`: of the type given to [`Keys::new`].
    pub(super) fn push(&mut self, array: &ArrayRef) {
        match self.kind {
            DataType::Int8 => self.push_integers::<Int8Type>(array),
            DataType::Int16 => self.push_integers::<Int16Type>(array),
            DataType::Int32 => self.push_integers::<Int32Type>(array),
            DataType::Int64 => self.push_integers::<Int64Type>(array),
            _ => self.push_texts(array.as_dictionary::<Int32Type>()),
        }
    }

    fn push_integers<T: ArrowPrimitiveType<Native: Into<i64>>>(&mut self, array: &ArrayRef) {
        let array = array.as_primitive::<T>();
        let nulls = array.nulls().filter(|n| n.null_count() > 0);
        let mut last: Option<(i64, u32)> = None;
        for (i, value) in array.values().iter().enumerate() {
            if nulls.is_some_and(|n| n.is_null(i)) {
                self.push_nulls(1);
                continue;
            }
            let value: i64 = (*value).into();
            let key = match last {
                Some((seen, key)) if seen == value => key,
                _ => self.integer(value),
            };
            last = Some((value, key));
            self.run(key, 1);
        }
    }

    #[inline]
    fn integer(&mut self, value: i64) -> u32 {
        let Values::Integers { values, by_value, small, .. } = &mut self.values else { return NULL };
        if let Some(at) = usize::try_from(value).ok().filter(|at| *at < SMALL_END) {
            if small.len() <= at {
                small.resize(at + 1, UNSEEN);
            }
            if small[at] == UNSEEN {
                small[at] = values.len() as u32;
                values.push(value);
            }
            return small[at];
        }
        *by_value.entry(value).or_insert_with(|| {
            values.push(value);
            values.len() as u32 - 1
        })
    }

    fn push_texts(&mut self, array: &DictionaryArray<Int32Type>) {
        let mut map = match &mut self.values {
            Values::Texts { known, .. } => match known.take() {
                Some((values, map)) if Arc::ptr_eq(&values, array.values()) => map,
                _ => vec![UNSEEN; array.values().len()],
            },
            Values::Integers { .. } => return,
        };
        let texts = array.values().as_string::<i32>();
        let nulls = array.keys().nulls().filter(|n| n.null_count() > 0);
        for (i, from) in array.keys().values().iter().enumerate() {
            if nulls.is_some_and(|n| n.is_null(i)) {
                self.push_nulls(1);
                continue;
            }
            let from = *from as usize;
            if map[from] == UNSEEN {
                map[from] = if texts.is_null(from) { NULL } else { self.text(texts.value(from).as_bytes()) };
            }
            self.nulls += usize::from(map[from] == NULL);
            self.run(map[from], 1);
        }
        if let Values::Texts { known, .. } = &mut self.values {
            *known = Some((array.values().clone(), map));
        }
    }

    fn text(&mut self, text: &[u8]) -> u32 {
        let Values::Texts { page, ends, by_hash, .. } = &mut self.values else { return NULL };
        let mut hash = xxh3_64(text);
        loop {
            match by_hash.get(&hash) {
                Some(key) if text_at(page, ends, *key as usize) == text => return *key,
                // Another text with the same hash: the next free place.
                Some(_) => hash = hash.wrapping_add(1),
                None => break,
            }
        }
        let key = ends.len() as u32;
        page.extend_from_slice(&(text.len() as u32).to_le_bytes());
        page.extend_from_slice(text);
        ends.push(page.len() as u32);
        by_hash.insert(hash, key);
        key
    }

    /// The dictionary page, not compressed.
    pub(super) fn dictionary_page(&self) -> Vec<u8> {
        match &self.values {
            Values::Texts { page, .. } => page.clone(),
            Values::Integers { width, values, .. } => {
                values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(*width)).collect()
            }
        }
    }

    /// Bytes of all texts of the rows, each counted as often as it occurs; `None` for numbers.
    pub(super) fn text_bytes(&self, runs: &[(u32, u32)]) -> Option<i64> {
        let Values::Texts { page, ends, .. } = &self.values else { return None };
        let len = |key: u32| text_at(page, ends, key as usize).len() as i64;
        Some(runs.iter().filter(|r| r.0 != NULL).map(|(key, n)| len(*key) * i64::from(*n)).sum())
    }

    /// `None`: all null.
    pub(super) fn bounds(&self, runs: &[(u32, u32)]) -> Option<Bounds> {
        let keys = || runs.iter().map(|r| r.0).filter(|k| *k != NULL);
        match &self.values {
            Values::Integers { width, values, .. } => {
                let at = |k: u32| values[k as usize];
                let (min, max) = (keys().map(at).min()?, keys().map(at).max()?);
                Some(if *width == 4 { Bounds::Int32(min as i32, max as i32) } else { Bounds::Int64(min, max) })
            }
            Values::Texts { page, ends, .. } => {
                let at = |k: u32| text_at(page, ends, k as usize);
                keys().next()?;
                // Every value of the dictionary is in some row.
                let all = || (0..ends.len() as u32).map(at);
                let (min, max) = (all().min()?, all().max()?);
                let low = cut(min);
                let high = if max.len() > BOUND_BYTES { above(cut(max)) } else { Some(max.to_vec()) };
                Some(Bounds::Text {
                    min: ByteArray::from(low.to_vec()),
                    min_exact: low.len() == min.len(),
                    max: high.map(ByteArray::from),
                    max_exact: max.len() <= BOUND_BYTES,
                })
            }
        }
    }

    /// All rows as one array of the column's type.
    pub(super) fn to_array(&self) -> ArrayRef {
        let keys =
            || self.runs.iter().flat_map(|(k, n)| std::iter::repeat_n(Some(*k).filter(|k| *k != NULL), *n as usize));
        match &self.values {
            Values::Texts { page, ends, .. } => {
                let text = |k: usize| std::str::from_utf8(text_at(page, ends, k)).expect("was a text");
                let values = StringArray::from_iter_values((0..ends.len()).map(text));
                let keys: Int32Array = keys().map(|k| k.map(|k| k as i32)).collect();
                Arc::new(DictionaryArray::new(keys, Arc::new(values)))
            }
            Values::Integers { values, .. } => {
                let values = keys().map(|k| k.map(|k| values[k as usize]));
                match self.kind {
                    DataType::Int8 => Arc::new(values.map(|v| v.map(|v| v as i8)).collect::<Int8Array>()),
                    DataType::Int16 => Arc::new(values.map(|v| v.map(|v| v as i16)).collect::<Int16Array>()),
                    DataType::Int32 => Arc::new(values.map(|v| v.map(|v| v as i32)).collect::<Int32Array>()),
                    _ => Arc::new(values.collect::<Int64Array>()),
                }
            }
        }
    }
}

fn text_at<'p>(page: &'p [u8], ends: &[u32], key: usize) -> &'p [u8] {
    let start = key.checked_sub(1).map_or(0, |k| ends[k] as usize);
    &page[start + 4..ends[key] as usize]
}

/// The start of a text, cut between characters.
fn cut(text: &[u8]) -> &[u8] {
    let mut end = text.len().min(BOUND_BYTES);
    while end < text.len() && end > 0 && text[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &text[..end]
}

/// A text above all that start with `prefix`; `None` where its last character that could grow is none of ASCII.
fn above(prefix: &[u8]) -> Option<Vec<u8>> {
    let at = prefix.iter().rposition(|b| *b < 0x7e)?;
    let mut out = prefix[..=at].to_vec();
    out[at] += 1;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        let texts: DictionaryArray<Int32Type> =
            vec![Some("a"), Some("b"), None, Some("b"), Some("b")].into_iter().collect();
        let mut keys = Keys::new(texts.data_type()).unwrap();
        keys.push_nulls(2);
        let all: ArrayRef = Arc::new(texts);
        keys.push(&all);
        keys.push(&all.slice(3, 2));
        assert_eq!((keys.rows(), keys.nulls(), keys.distinct()), (9, 3, 2));
        assert_eq!(keys.runs(), [(NULL, 2), (0, 1), (1, 1), (NULL, 1), (1, 4)]);
        let back = keys.to_array();
        let back: Vec<_> =
            back.as_dictionary::<Int32Type>().downcast_dict::<StringArray>().unwrap().into_iter().collect();
        assert_eq!(back, [None, None, Some("a"), Some("b"), None, Some("b"), Some("b"), Some("b"), Some("b")]);
        let numbers: ArrayRef = Arc::new(Int16Array::from(vec![Some(-3), None, Some(-3), Some(7)]));
        let mut keys = Keys::new(numbers.data_type()).unwrap();
        keys.push(&numbers);
        assert_eq!(&keys.to_array(), &numbers);
        assert_eq!(keys.dictionary_page(), [0xfd, 0xff, 0xff, 0xff, 7, 0, 0, 0]);
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![4096, 4095, 0, i64::MIN, 4095, 4096, i64::MAX, 0]));
        let mut keys = Keys::new(numbers.data_type()).unwrap();
        keys.push(&numbers);
        assert_eq!((&keys.to_array(), keys.distinct()), (&numbers, 5));
    }

    #[test]
    fn bounds_of_long_texts_are_short_and_true() {
        for text in [
            "short".to_owned(),
            "x".repeat(200),
            "é".repeat(100),
            format!("{}~~~~", "~".repeat(70)),
            format!("a{}", "é".repeat(60)),
        ] {
            let array: DictionaryArray<Int32Type> = std::iter::once(text.as_str()).collect();
            let mut keys = Keys::new(array.data_type()).unwrap();
            keys.push(&(Arc::new(array) as ArrayRef));
            let Some(Bounds::Text { min, min_exact, max, max_exact }) = keys.bounds(keys.runs()) else { panic!() };
            assert!(min.data() <= text.as_bytes() && min.data().len() <= BOUND_BYTES);
            assert!(std::str::from_utf8(min.data()).is_ok());
            assert_eq!((min_exact, max_exact), (text.len() <= BOUND_BYTES, text.len() <= BOUND_BYTES));
            if let Some(max) = max {
                assert!(max.data() >= text.as_bytes() && max.data().len() <= BOUND_BYTES);
                assert!(std::str::from_utf8(max.data()).is_ok());
            }
        }
    }
}

//! A column of texts that rarely repeat, such as log bodies: lengths and bytes of a page at a time, compressed as soon as the
//! page is full.
//!
//! Rows that follow each other in memory are copied once, to where the compressor reads them.

use arrow::array::{Array, StringArray};
use parquet::{basic::Encoding, errors::Result};

use super::{
    delta,
    pages::{ChunkOptions, ChunkWriter, EncodedChunk, PageFacts, put_levels},
    rle::Hybrid,
};

/// Room made ahead for a chunk: as much as a row group of log bodies takes. What is not touched costs nothing, while growing
/// to it would touch as much again.
const CHUNK_BYTES: usize = 6 << 20;

/// Rows of one column on their way into pages.
pub(super) struct Texts {
    chunk: ChunkWriter,
    /// Bytes of a page's texts at most, unless a single text is longer.
    page_bytes: usize,
    /// The page being filled: room for levels and lengths, then the texts end to end.
    page: Vec<u8>,
    /// Of the texts in `page`.
    lengths: Vec<i32>,
    /// Validity of the page's rows, if the column may hold nulls.
    levels: Option<Hybrid>,
    page_rows: usize,
    rows: usize,
    nulls: usize,
    text_bytes: i64,
}

impl Texts {
    /// `page_bytes`: bytes of a page's texts.
    pub(super) fn new(options: &ChunkOptions, page_bytes: usize) -> Result<Self> {
        let optional = options.leaf.max_def_level() > 0;
        let mut out = Texts {
            chunk: ChunkWriter::with_capacity(options, CHUNK_BYTES)?,
            page_bytes,
            page: Vec::with_capacity(room(options.page_rows) + page_bytes),
            lengths: Vec::with_capacity(options.page_rows),
            levels: optional.then(no_levels),
            page_rows: 0,
            rows: 0,
            nulls: 0,
            text_bytes: 0,
        };
        out.clear();
        Ok(out)
    }

    fn clear(&mut self) {
        self.page.clear();
        self.page.resize(room(self.chunk.options().page_rows), 0);
        self.lengths.clear();
        self.page_rows = 0;
    }

    fn page_text_bytes(&self) -> usize {
        self.page.len() - room(self.chunk.options().page_rows)
    }

    pub(super) fn push_nulls(&mut self, mut rows: usize) -> Result<()> {
        while rows > 0 {
            let n = rows.min(self.chunk.options().page_rows - self.page_rows);
            if let Some(levels) = &mut self.levels {
                levels.push(0, n);
            }
            self.page_rows += n;
            self.nulls += n;
            rows -= n;
            self.end_full_page(0)?;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, array: &StringArray) -> Result<()> {
        match array.nulls().filter(|n| n.null_count() > 0) {
            None => self.push_valid(array, 0, array.len()),
            Some(nulls) => {
                let mut at = 0;
                for (from, to) in nulls.valid_slices() {
                    self.push_nulls(from - at)?;
                    self.push_valid(array, from, to)?;
                    at = to;
                }
                self.push_nulls(array.len() - at)
            }
        }
    }

    /// Rows `from..to`, none of which is null.
    fn push_valid(&mut self, array: &StringArray, from: usize, to: usize) -> Result<()> {
        let ends = array.value_offsets();
        let mut at = from;
        while at < to {
            let room = self.page_bytes.saturating_sub(self.page_text_bytes());
            let rows = (to - at).min(self.chunk.options().page_rows - self.page_rows);
            let mut n = 0;
            while n < rows && (ends[at + n + 1] - ends[at]) as usize <= room {
                self.lengths.push(ends[at + n + 1] - ends[at + n]);
                n += 1;
            }
            if n == 0 && self.page_rows == 0 {
                // Longer than a page: alone in one.
                self.lengths.push(ends[at + 1] - ends[at]);
                n = 1;
            }
            self.page.extend_from_slice(&array.value_data()[ends[at] as usize..ends[at + n] as usize]);
            if let Some(levels) = &mut self.levels {
                levels.push(1, n);
            }
            self.page_rows += n;
            at += n;
            let next = if at < to { (ends[at + 1] - ends[at]) as usize } else { 0 };
            self.end_full_page(next)?;
        }
        Ok(())
    }

    /// Ends the page when it has its rows, or when a text of `next` bytes has no room in it.
    fn end_full_page(&mut self, next: usize) -> Result<()> {
        let full = self.page_rows >= self.chunk.options().page_rows
            || self.page_rows > 0 && self.page_text_bytes() + next > self.page_bytes;
        if full { self.end_page() } else { Ok(()) }
    }

    fn end_page(&mut self) -> Result<()> {
        let mut head = Vec::new();
        if let Some(levels) = self.levels.take() {
            put_levels(&mut head, levels);
            self.levels = Some(no_levels());
        }
        delta::encode(&self.lengths, &mut head);
        let texts = room(self.chunk.options().page_rows);
        let start = texts - head.len();
        self.page[start..texts].copy_from_slice(&head);
        let text_bytes = self.page_text_bytes() as i64;
        let nulls = self.page_rows - self.lengths.len();
        let facts = PageFacts { rows: self.page_rows, nulls, bounds: None, text_bytes: Some(text_bytes) };
        self.chunk.data(&self.page[start..], Encoding::DELTA_LENGTH_BYTE_ARRAY, facts)?;
        self.rows += self.page_rows;
        self.text_bytes += text_bytes;
        if self.page.capacity() > 2 * (texts + self.page_bytes) {
            // One huge text must not keep its memory until the row group ends.
            self.page = Vec::with_capacity(texts + self.page_bytes);
        }
        self.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<EncodedChunk> {
        if self.page_rows > 0 {
            self.end_page()?;
        }
        let all = PageFacts { rows: self.rows, nulls: self.nulls, bounds: None, text_bytes: Some(self.text_bytes) };
        self.chunk.finish(vec![Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::RLE], all)
    }
}

/// Bytes that levels and lengths of a page take at most: a bit a row, rounded up generously, and the lengths.
fn room(page_rows: usize) -> usize {
    64 + page_rows * 2 + delta::bytes_max(page_rows)
}

fn no_levels() -> Hybrid {
    Hybrid::new(1, Vec::new())
}

//! A gathered column as the bytes of a Parquet column chunk: dictionary page, data pages (version 1), their index.

use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding, PageType, ZstdLevel},
    column::{
        page::{CompressedPage, Page, PageWriter as _},
        writer::ColumnCloseResult,
    },
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats},
        properties::EnabledStatistics,
        statistics::{Statistics, ValueStatistics},
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};

use super::{
    keys::{Bounds, Keys, NULL},
    rle::Hybrid,
};

/// A page goes on past the usual number of rows while it has fewer encoded bytes than this: a header costs about 30.
const PAGE_BYTES_MIN: usize = 4 << 10;

#[derive(Clone)]
pub(super) struct ChunkOptions {
    pub(super) leaf: ColumnDescPtr,
    pub(super) statistics: EnabledStatistics,
    /// Rows of a page, or a multiple of that where a page would be tiny.
    pub(super) page_rows: usize,
    pub(super) zstd: Zstd,
}

/// How pages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zstd {
    Level(i32),
    /// Texts that lie sorted by template: matches are long, and looking for short ones is time lost.
    Templated(i32),
}

/// Shortest match that is looked for in templated texts. On the bodies of W1 the longest that zstd knows gave pages 1 %
/// smaller at level 1, and at level -3 a fifth more speed.
const TEMPLATED_MATCH: u32 = 7;

impl Zstd {
    fn compressor(self) -> Result<zstd::bulk::Compressor<'static>> {
        Ok(match self {
            Zstd::Level(level) => zstd::bulk::Compressor::new(level)?,
            Zstd::Templated(level) => {
                let mut out = zstd::bulk::Compressor::new(level)?;
                out.set_parameter(zstd::zstd_safe::CParameter::MinMatch(TEMPLATED_MATCH))?;
                out
            }
        })
    }

    /// What the footer's builder takes; the level is not written.
    fn named(self) -> Result<ZstdLevel> {
        let (Zstd::Level(level) | Zstd::Templated(level)) = self;
        ZstdLevel::try_new(level.max(1))
    }
}

/// A column chunk as [`parquet::file::writer::SerializedRowGroupWriter::append_column`] takes it.
pub(super) struct EncodedChunk {
    pub(super) bytes: Bytes,
    pub(super) close: ColumnCloseResult,
}

/// What is known of one data page.
pub(super) struct PageFacts {
    pub(super) rows: usize,
    pub(super) nulls: usize,
    pub(super) bounds: Option<Bounds>,
    pub(super) text_bytes: Option<i64>,
}

/// Writes pages one after the other and keeps what the footer says of them.
pub(super) struct ChunkWriter {
    options: ChunkOptions,
    compressor: zstd::bulk::Compressor<'static>,
    out: TrackedWrite<Vec<u8>>,
    uncompressed: usize,
    dictionary_at: Option<i64>,
    data_at: Option<i64>,
    data_pages: i32,
    offsets: OffsetIndexBuilder,
    /// With statistics of each page.
    index: Option<ColumnIndexBuilder>,
}

impl ChunkWriter {
    pub(super) fn new(options: &ChunkOptions) -> Result<Self> {
        Self::with_capacity(options, 0)
    }

    /// `bytes`: what the chunk will take, roughly.
    pub(super) fn with_capacity(options: &ChunkOptions, bytes: usize) -> Result<Self> {
        let index = options.statistics == EnabledStatistics::Page;
        Ok(ChunkWriter {
            options: options.clone(),
            compressor: options.zstd.compressor()?,
            out: TrackedWrite::new(Vec::with_capacity(bytes)),
            uncompressed: 0,
            dictionary_at: None,
            data_at: None,
            data_pages: 0,
            offsets: OffsetIndexBuilder::new(),
            index: index.then(|| ColumnIndexBuilder::new(options.leaf.physical_type())),
        })
    }

    pub(super) fn options(&self) -> &ChunkOptions {
        &self.options
    }

    fn write_page(&mut self, page: impl FnOnce(Bytes) -> Page, raw: &[u8]) -> Result<(i64, i32)> {
        let compressed = Bytes::from(self.compressor.compress(raw)?);
        let spec =
            SerializedPageWriter::new(&mut self.out).write_page(CompressedPage::new(page(compressed), raw.len()))?;
        self.uncompressed += spec.uncompressed_size;
        let bytes = i32::try_from(spec.bytes_written).map_err(|e| ParquetError::General(e.to_string()))?;
        Ok((spec.offset as i64, bytes))
    }

    fn dictionary(&mut self, raw: &[u8], values: usize) -> Result<()> {
        let page = |buf| Page::DictionaryPage {
            buf,
            num_values: values as u32,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        self.dictionary_at = Some(self.write_page(page, raw)?.0);
        Ok(())
    }

    pub(super) fn data(&mut self, raw: &[u8], encoding: Encoding, facts: PageFacts) -> Result<()> {
        let page = |buf| Page::DataPage {
            buf,
            num_values: facts.rows as u32,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let (at, bytes) = self.write_page(page, raw)?;
        self.data_at.get_or_insert(at);
        self.data_pages += 1;
        self.offsets.append_row_count(facts.rows as i64);
        self.offsets.append_offset_and_size(at, bytes);
        self.offsets.append_unencoded_byte_array_data_bytes(facts.text_bytes);
        if let Some(index) = &mut self.index {
            let (min, max) = match &facts.bounds {
                None => (Vec::new(), Vec::new()),
                Some(Bounds::Int32(a, b)) => (a.to_le_bytes().to_vec(), b.to_le_bytes().to_vec()),
                Some(Bounds::Int64(a, b)) => (a.to_le_bytes().to_vec(), b.to_le_bytes().to_vec()),
                Some(Bounds::Text { min, max: Some(max), .. }) => (min.data().to_vec(), max.data().to_vec()),
                Some(Bounds::Text { max: None, .. }) => {
                    index.to_invalid();
                    (Vec::new(), Vec::new())
                }
            };
            index.append(facts.bounds.is_none(), min, max, facts.nulls as i64);
        }
        Ok(())
    }

    pub(super) fn finish(self, encodings: Vec<Encoding>, all: PageFacts) -> Result<EncodedChunk> {
        let bytes = Bytes::from(self.out.into_inner()?);
        let stats = |encoding, page_type, count| PageEncodingStats { page_type, encoding, count };
        let mut pages = vec![stats(encodings[0], PageType::DATA_PAGE, self.data_pages)];
        if self.dictionary_at.is_some() {
            pages.insert(0, stats(Encoding::PLAIN, PageType::DICTIONARY_PAGE, 1));
        }
        let mut metadata = ColumnChunkMetaData::builder(self.options.leaf.clone())
            .set_compression(Compression::ZSTD(self.options.zstd.named()?))
            .set_encodings(encodings)
            .set_page_encoding_stats(pages)
            .set_total_compressed_size(bytes.len() as i64)
            .set_total_uncompressed_size(self.uncompressed as i64)
            .set_num_values(all.rows as i64)
            .set_data_page_offset(self.data_at.unwrap_or(0))
            .set_dictionary_page_offset(self.dictionary_at)
            .set_unencoded_byte_array_data_bytes(all.text_bytes);
        if self.options.statistics != EnabledStatistics::None {
            metadata = metadata.set_statistics(statistics(&self.options.leaf, &all));
        }
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: all.rows as u64,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: self.index.filter(ColumnIndexBuilder::valid).map(ColumnIndexBuilder::build).transpose()?,
            offset_index: Some(self.offsets.build()),
        };
        Ok(EncodedChunk { bytes, close })
    }
}

fn statistics(leaf: &ColumnDescPtr, all: &PageFacts) -> Statistics {
    use parquet::basic::Type;
    let nulls = Some(all.nulls as u64);
    match &all.bounds {
        Some(Bounds::Int32(min, max)) => Statistics::int32(Some(*min), Some(*max), None, nulls, false),
        Some(Bounds::Int64(min, max)) => Statistics::int64(Some(*min), Some(*max), None, nulls, false),
        Some(Bounds::Text { min, min_exact, max, max_exact }) => Statistics::ByteArray(
            ValueStatistics::new(Some(min.clone()), max.clone(), None, nulls, false)
                .with_min_is_exact(*min_exact)
                .with_max_is_exact(*max_exact),
        ),
        None => match leaf.physical_type() {
            Type::BOOLEAN => Statistics::boolean(None, None, None, nulls, false),
            Type::INT32 => Statistics::int32(None, None, None, nulls, false),
            Type::INT64 => Statistics::int64(None, None, None, nulls, false),
            Type::FLOAT => Statistics::float(None, None, None, nulls, false),
            Type::DOUBLE => Statistics::double(None, None, None, nulls, false),
            _ => Statistics::byte_array(None, None, None, nulls, false),
        },
    }
}

/// `rows` nulls, one page.
pub(super) fn encode_nulls(rows: usize, options: &ChunkOptions) -> Result<EncodedChunk> {
    let mut chunk = ChunkWriter::new(options)?;
    let facts = || PageFacts { rows, nulls: rows, bounds: None, text_bytes: None };
    let mut levels = Hybrid::new(1, Vec::new());
    levels.push(0, rows);
    let mut raw = Vec::new();
    put_levels(&mut raw, levels);
    chunk.data(&raw, Encoding::PLAIN, facts())?;
    chunk.finish(vec![Encoding::PLAIN, Encoding::RLE], facts())
}

pub(super) fn put_levels(raw: &mut Vec<u8>, levels: Hybrid) {
    let levels = levels.finish();
    raw.extend_from_slice(&(levels.len() as u32).to_le_bytes());
    raw.extend_from_slice(&levels);
}

pub(super) fn encode_keys(keys: &Keys, options: &ChunkOptions) -> Result<EncodedChunk> {
    let mut chunk = ChunkWriter::new(options)?;
    chunk.dictionary(&keys.dictionary_page(), keys.distinct())?;
    let width = (usize::BITS - keys.distinct().saturating_sub(1).leading_zeros()) as u8;
    let optional = options.leaf.max_def_level() > 0;
    let mut left = Runs { runs: keys.runs(), used: 0 };
    while let Some(mut page) = left.take(options.page_rows) {
        let (mut levels, mut values) = (Hybrid::new(1, Vec::new()), Hybrid::new(width, vec![width]));
        let (mut rows, mut nulls, mut pieces) = (0, 0, Vec::new());
        loop {
            for &(key, n) in &page {
                rows += n as usize;
                nulls += if key == NULL { n as usize } else { 0 };
                if optional {
                    levels.push(u32::from(key != NULL), n as usize);
                }
                if key != NULL {
                    values.push(key, n as usize);
                }
            }
            pieces.extend(page);
            if options.statistics == EnabledStatistics::Page || levels.len() + values.len() >= PAGE_BYTES_MIN {
                break;
            }
            let Some(more) = left.take(options.page_rows) else { break };
            page = more;
        }
        let mut raw = Vec::new();
        if optional {
            put_levels(&mut raw, levels);
        }
        raw.extend_from_slice(&values.finish());
        let bounds = if chunk.index.is_some() { keys.bounds(&pieces) } else { None };
        let facts = PageFacts { rows, nulls, bounds, text_bytes: keys.text_bytes(&pieces) };
        chunk.data(&raw, Encoding::RLE_DICTIONARY, facts)?;
    }
    let all = PageFacts {
        rows: keys.rows(),
        nulls: keys.nulls(),
        bounds: keys.bounds(keys.runs()),
        text_bytes: keys.text_bytes(keys.runs()),
    };
    chunk.finish(vec![Encoding::RLE_DICTIONARY, Encoding::PLAIN, Encoding::RLE], all)
}

/// Runs, taken a number of rows at a time.
struct Runs<'k> {
    runs: &'k [(u32, u32)],
    /// Rows of the first run that are gone.
    used: u32,
}

impl Runs<'_> {
    /// The next `rows` rows or what there is of them; `None` at the end.
    fn take(&mut self, rows: usize) -> Option<Vec<(u32, u32)>> {
        let (mut out, mut left) = (Vec::new(), u32::try_from(rows).unwrap_or(u32::MAX));
        while left > 0
            && let Some((&(key, n), rest)) = self.runs.split_first()
        {
            let n = n - self.used;
            let taken = n.min(left);
            out.push((key, taken));
            left -= taken;
            if taken == n {
                (self.runs, self.used) = (rest, 0);
            } else {
                self.used += taken;
            }
        }
        (!out.is_empty()).then_some(out)
    }
}

//! Columns of the input batches as encoders read them: one call for what may be plain or a dictionary, null or absent.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Int32Type, Int64Type, TimestampNanosecondType},
};

/// A batch that an encoder cannot write: a column is missing, has another type, or holds what is no canonical JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EncodeError(pub String);

impl EncodeError {
    pub fn column(name: &str, what: impl std::fmt::Display) -> Self {
        EncodeError(format!("column `{name}` {what}"))
    }
}

/// No value: the key of null in a [`Text`] column.
pub const NULL: i32 = -1;

/// A text column. Equal keys mean equal texts (not the other way round), so that work can be done once for each key.
pub enum Text<'a> {
    Dictionary { keys: &'a arrow::array::Int32Array, values: &'a arrow::array::StringArray },
    Plain(&'a arrow::array::StringArray),
}

impl<'a> Text<'a> {
    pub fn of(batch: &'a RecordBatch, name: &str) -> Result<Self, EncodeError> {
        let column = batch.column_by_name(name).ok_or_else(|| EncodeError::column(name, "is missing"))?;
        match column.data_type() {
            DataType::Utf8 => Ok(Text::Plain(column.as_string::<i32>())),
            DataType::Dictionary(_, _) => {
                let wrong = || EncodeError::column(name, "is no dictionary of texts");
                let dictionary = column.as_dictionary_opt::<Int32Type>().ok_or_else(wrong)?;
                let values = dictionary.values().as_string_opt::<i32>().ok_or_else(wrong)?;
                Ok(Text::Dictionary { keys: dictionary.keys(), values })
            }
            other => Err(EncodeError::column(name, format!("has type {other}"))),
        }
    }

    /// [`NULL`] for null. Of a plain column the row itself.
    pub fn key(&self, row: usize) -> i32 {
        match self {
            Text::Dictionary { keys, .. } if keys.is_valid(row) => keys.value(row),
            Text::Plain(values) if values.is_valid(row) => row as i32,
            _ => NULL,
        }
    }

    /// The text of a key that [`Text::key`] gave.
    pub fn text(&self, key: i32) -> Option<&'a str> {
        let at = usize::try_from(key).ok()?;
        let values: &'a arrow::array::StringArray = match self {
            Text::Dictionary { values, .. } | Text::Plain(values) => values,
        };
        (at < values.len()).then(|| values.value(at))
    }

    pub fn at(&self, row: usize) -> Option<&'a str> {
        self.text(self.key(row))
    }
}

macro_rules! reader {
    ($name:ident, $array:ty, $value:ty, $read:expr, $what:literal) => {
        #[doc = concat!("Reads a column of ", $what, "; `None` for null.")]
        pub struct $name<'a>(&'a $array);

        impl<'a> $name<'a> {
            pub fn of(batch: &'a RecordBatch, name: &str) -> Result<Self, EncodeError> {
                let column = batch.column_by_name(name).ok_or_else(|| EncodeError::column(name, "is missing"))?;
                let read: fn(&'a dyn Array) -> Option<&'a $array> = $read;
                let typed = read(column.as_ref());
                typed.map($name).ok_or_else(|| EncodeError::column(name, concat!("does not hold ", $what)))
            }

            pub fn at(&self, row: usize) -> Option<$value> {
                self.0.is_valid(row).then(|| self.0.value(row))
            }
        }
    };
}

reader!(Ints, arrow::array::Int64Array, i64, |a| a.as_primitive_opt::<Int64Type>(), "64-bit integers");
reader!(SmallInts, arrow::array::Int32Array, i32, |a| a.as_primitive_opt::<Int32Type>(), "32-bit integers");
reader!(
    Times,
    arrow::array::TimestampNanosecondArray,
    i64,
    |a| a.as_primitive_opt::<TimestampNanosecondType>(),
    "nanosecond times"
);
reader!(
    Doubles,
    arrow::array::Float64Array,
    f64,
    |a| a.as_primitive_opt::<arrow::datatypes::Float64Type>(),
    "doubles"
);
reader!(Flags, arrow::array::BooleanArray, bool, |a| a.as_boolean_opt(), "booleans");
reader!(Blobs, arrow::array::BinaryArray, &'a [u8], |a| a.as_binary_opt::<i32>(), "bytes");

/// A column of lists of doubles.
pub struct DoubleLists<'a>(&'a arrow::array::ListArray);

impl<'a> DoubleLists<'a> {
    pub fn of(batch: &'a RecordBatch, name: &str) -> Result<Self, EncodeError> {
        let column = batch.column_by_name(name).ok_or_else(|| EncodeError::column(name, "is missing"))?;
        let lists = column.as_list_opt::<i32>();
        let typed = lists.filter(|l| l.values().as_primitive_opt::<arrow::datatypes::Float64Type>().is_some());
        typed.map(DoubleLists).ok_or_else(|| EncodeError::column(name, "does not hold lists of doubles"))
    }

    pub fn at(&self, row: usize) -> Option<Vec<f64>> {
        use arrow::datatypes::Float64Type;
        self.0.is_valid(row).then(|| self.0.value(row).as_primitive::<Float64Type>().values().to_vec())
    }
}

//! A mutation runner for decoders of foreign bytes, used by the `fuzz` test of each crate.
//!
//! It takes inputs that decode, breaks them in ways that decoders care about, and looks at what happens: a panic, a hang
//! or memory out of proportion is a failure, whose input is kept in a file and can be put among the seeds
//! (`tests/corpus/<target>/`). There is no instrumentation; what guides it is what the decoder says: an input with a new
//! outcome is kept and broken further. On stable Rust and two cores that finds more in its seconds than building
//! everything a second time for libFuzzer would.
//!
//! `SIGHTLINE_FUZZ_SECONDS` is the time of each target (2), `SIGHTLINE_FUZZ_SEED` a number or `random`. Without it each
//! run goes the same way, as far as its time lets it: a gate must not fail by chance on what another change brought in.
//! What looks for new failures is `.ci/fuzz`, with seeds of its own.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, Once, PoisonError},
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// The seed of a run that names none.
const SEED: u64 = 1;
/// Longest input that is made.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Inputs kept because their outcome was new.
const KEPT_MAX: usize = 2_000;
/// One input may take this long. Debug builds on a busy machine are slow; a hang is for ever.
const INPUT_SECONDS_MAX: u64 = 10;
/// Memory the process may take more than before the target, at most: decoders have limits of their own below it.
const GROWTH_KIB_MAX: u64 = 512 << 10;

/// One target at a time: its time and its memory are its own.
static TURN: Mutex<()> = Mutex::new(());

/// What the last panic said: decoders that guard a library catch its panics, which are not for the terminal.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string()));
    });
}

/// What a target is given.
pub struct Target<'a> {
    pub name: &'a str,
    /// Inputs that decode, besides the files of `tests/corpus/<name>/`.
    pub seeds: Vec<Vec<u8>>,
    /// Words of the language that mutations put in.
    pub words: &'a [&'a str],
}

/// Stack of the program's own threads (`THREAD_STACK_BYTES` of the binary): what a decoder may use.
const STACK_BYTES: usize = 8 << 20;

/// Runs `decode` on broken inputs. It tells the outcome in a few words: the error without the values of this very input.
pub fn run(manifest: &str, target: Target<'_>, decode: impl Fn(&[u8]) -> String + Sync) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let done = thread.spawn_scoped(scope, || run_here(manifest, target, &decode)).expect("a thread");
        // What was wrong is told already.
        assert!(done.join().is_ok(), "see above");
    });
}

fn run_here(manifest: &str, target: Target<'_>, decode: &impl Fn(&[u8]) -> String) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    keep_panics_quiet();
    let seconds = number("SIGHTLINE_FUZZ_SECONDS").unwrap_or(2);
    let seed = match std::env::var("SIGHTLINE_FUZZ_SEED") {
        Ok(word) if word == "random" => rand::random(),
        Ok(number) => number.parse().expect("SIGHTLINE_FUZZ_SEED is a number or `random`"),
        Err(_) => SEED,
    };
    let mut pool = target.seeds;
    pool.extend(corpus(&Path::new(manifest).join("tests/corpus").join(target.name)));
    assert!(!pool.is_empty(), "{}: no seeds", target.name);
    let mut rng = StdRng::seed_from_u64(seed);
    println!("{}: seed {seed}", target.name);
    let last = std::env::temp_dir().join(format!("sightline-fuzz-{}-{}-last", target.name, std::process::id()));
    let trace = File::create(&last).expect("the folder for temporary files can be written");
    let judge = Judge { target: target.name, seed, base_kib: reset_peak(), trace, decode };
    let mut known: HashSet<String> = pool.iter().map(|input| judge.judge(input)).collect();
    let until = Instant::now() + Duration::from_secs(seconds);
    let (mut inputs, seeds) = (0_u64, pool.len());
    while Instant::now() < until {
        let mut input = pool[rng.random_range(0..pool.len())].clone();
        for _ in 0..1 << rng.random_range(0..4) {
            mutate(&mut input, &pool, target.words, &mut rng);
        }
        input.truncate(INPUT_BYTES_MAX);
        inputs += 1;
        let outcome = judge.judge(&input);
        if pool.len() < seeds + KEPT_MAX && known.insert(outcome) {
            pool.push(input);
        }
        if inputs.is_multiple_of(1_000) {
            judge.memory(&[]);
        }
    }
    judge.memory(&[]);
    let _ = fs::remove_file(last);
    println!("{}: {inputs} inputs, {} outcomes", target.name, known.len());
}

/// An outcome of an error: the beginning of its text, of that only letters outside of quotes, since the rest differs with
/// each input.
#[allow(dead_code, reason = "not every crate's errors need it")]
pub fn outline(error: &dyn std::fmt::Display) -> String {
    let mut quoted = false;
    error
        .to_string()
        .chars()
        .take(200)
        .filter_map(|c| match c {
            '`' | '"' | '\'' => {
                quoted = !quoted;
                None
            }
            c => (!quoted && (c.is_ascii_alphabetic() || c == ' ')).then_some(c),
        })
        .take(60)
        .collect()
}

/// A number of rows as the size of it.
#[allow(dead_code, reason = "not every crate decodes rows")]
pub fn size(rows: usize) -> u32 {
    usize::BITS - rows.leading_zeros()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn corpus(dir: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    files.iter().filter_map(|f| fs::read(f).ok()).collect()
}

struct Judge<'a, F> {
    target: &'a str,
    seed: u64,
    base_kib: u64,
    /// The input at hand: what ends the process (an overflowing stack, an abort) leaves it behind.
    trace: File,
    decode: &'a F,
}

impl<F: Fn(&[u8]) -> String> Judge<'_, F> {
    fn judge(&self, input: &[u8]) -> String {
        let traced = self.trace.set_len(input.len() as u64).and_then(|()| self.trace.write_all_at(input, 0));
        traced.expect("the folder for temporary files has room");
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.decode)(input)));
        let took = began.elapsed();
        let Ok(outcome) = outcome else {
            let said = PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.fail(input, &said)
        };
        if took > Duration::from_secs(INPUT_SECONDS_MAX) {
            self.fail(input, &format!("took {took:?}"));
        }
        outcome
    }

    fn memory(&self, input: &[u8]) {
        let grown = peak_kib().saturating_sub(self.base_kib);
        if grown > GROWTH_KIB_MAX {
            self.fail(input, &format!("took {grown} KiB of memory"));
        }
    }

    fn fail(&self, input: &[u8], what: &str) -> ! {
        let file = std::env::temp_dir().join(format!("sightline-fuzz-{}-{}", self.target, self.seed));
        let kept = fs::write(&file, input).map_or_else(|e| e.to_string(), |()| file.display().to_string());
        println!(
            "{}: {what}; seed {}; the input is in {kept}; put it into tests/corpus/{}/ with the mending",
            self.target, self.seed, self.target
        );
        panic!("{}", self.target);
    }
}

/// Peak resident memory so far.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Makes the peak what is resident now, and tells it.
fn reset_peak() -> u64 {
    // Where this cannot be written the peak stays what it was: the bound is wider then.
    let _ = fs::write("/proc/self/clear_refs", "5");
    peak_kib()
}

const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "127",
    "65536",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551616",
    "1e999",
    "-0.0",
    "NaN",
    "0.000000000000000000000001",
    "253402300800",
];
const EDGES: [u64; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// One change.
fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], words: &[&str], rng: &mut StdRng) {
    let len = input.len();
    let at = rng.random_range(0..=len);
    let span = |rng: &mut StdRng| {
        let most = (len - at).min(1 << rng.random_range(0..12));
        at..at + rng.random_range(0..=most)
    };
    match rng.random_range(0..13) {
        0 if at < len => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < len => input[at] = EDGES[rng.random_range(0..6)] as u8,
        2 => input.truncate(at),
        3 => drop(input.drain(span(rng))),
        4 => {
            let piece = input[span(rng)].to_vec();
            let to = rng.random_range(0..=len);
            insert(input, to, &piece);
        }
        5 => {
            let other = &pool[rng.random_range(0..pool.len())];
            let from = rng.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        6 => {
            let bytes: Vec<u8> = (0..rng.random_range(1..9)).map(|_| rng.random()).collect();
            insert(input, at, &bytes);
        }
        // A length field, little or big endian.
        7 => {
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            let value = match rng.random_range(0..3) {
                0 => len as u64 + rng.random_range(0..3),
                _ => EDGES[rng.random_range(0..EDGES.len())],
            };
            let bytes = if rng.random() {
                value.to_le_bytes()[..width].to_vec()
            } else {
                value.to_be_bytes()[8 - width..].to_vec()
            };
            let end = (at + width).min(len);
            input[at..end].copy_from_slice(&bytes[..end - at]);
        }
        // The length of a protobuf field.
        8 => {
            let mut value = EDGES[rng.random_range(0..EDGES.len())];
            let mut bytes = Vec::new();
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
            let end = input[at..].iter().position(|b| *b < 0x80).map_or(len, |n| at + n + 1);
            input.splice(at..end, bytes);
        }
        // A number in a text.
        9 => {
            if let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|n| at + n) {
                let end = start + input[start..].iter().take_while(|b| b.is_ascii_digit()).count();
                input.splice(start..end, NUMBERS[rng.random_range(0..NUMBERS.len())].bytes());
            }
        }
        10 if !words.is_empty() => {
            let word = words[rng.random_range(0..words.len())];
            insert(input, at, word.as_bytes());
        }
        // The same, over and over: depth and repetition.
        11 => {
            let piece = input[span(rng)].to_vec();
            let times = 1 << rng.random_range(1..10);
            if piece.len() * times < INPUT_BYTES_MAX {
                insert(input, at, &piece.repeat(times));
            }
        }
        _ => {
            let other = pool[rng.random_range(0..pool.len())].clone();
            let from = rng.random_range(0..=other.len());
            let to = rng.random_range(from..=other.len());
            insert(input, at, &other[from..to]);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if input.len() + bytes.len() <= INPUT_BYTES_MAX {
        input.splice(at..at, bytes.iter().copied());
    }
}

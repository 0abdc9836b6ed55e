//! Room for recursion over an expression that may be as high as it is allowed to be.

/// For a tree of the greatest height, several frames a level, unoptimised. Only what is touched takes memory.
const STACK_BYTES: usize = 64 << 20;

/// Brackets and operators below which no tree is high enough to need it. Words that are operators stand between spaces.
const LOW_BELOW: usize = 60;

/// Runs `f`, whose recursion is as deep as the expression `query` is high, on a stack that is large enough.
pub(super) fn with_room<T: Send>(query: &str, f: impl FnOnce() -> T + Send) -> T {
    let links = query.bytes().filter(|b| b"([{+-*/%^<>= ".contains(b)).count();
    if links < LOW_BELOW {
        return f();
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let running = thread.spawn_scoped(scope, f).expect("a thread can be started");
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

use super::*;

#[test]
fn a_broken_file_is_an_error_and_nothing_worse() {
    let seeds = vec![
        include_bytes!("example.yaml").to_vec(),
        b"retention:\n  - {keep: 30d, table: spans}\nlimits: {inflated_bytes: 64MiB, future: 10m}\nfsync: interval=200ms\n\
          sources:\n  app: {type: files, include: [\"/var/log/*.log\"], labels: {app: shop}}\n"
            .to_vec(),
    ];
    let words = [
        "&a ",
        "*a",
        "!!binary ",
        "<<: ",
        "- ",
        "? ",
        ": ",
        "|",
        ">",
        "{",
        "}",
        "[",
        "]",
        "---\n",
        "\t",
        "null",
        "'",
    ];
    let target = fuzzing::Target { name: "config", seeds, words: &words };
    fuzzing::run(env!("CARGO_MANIFEST_DIR"), target, |input| {
        let text = String::from_utf8_lossy(input);
        let checked = check(&text, "f");
        let tested = test(&text, "f").is_ok();
        match checked {
            Ok(_) => format!("fine {tested}"),
            Err(ConfigError(lines)) => format!("{} {}", fuzzing::size(lines.len()), fuzzing::outline(&lines[0])),
        }
    });
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = Config::load(&ServeArgs::default()).unwrap();
    assert_eq!(config.http.to_string(), "127.0.0.1:7600");
    assert_eq!(config.store.durability, Durability::Group);
    assert!(config.collect);
}

#[test]
fn every_error_comes_at_once_with_its_place() {
    let text = "htpp: 1\nfsync: sometimes\nmemory_limit: big\nretention:\n  - {keep: 30d, table: lgos}\n\
                sinks:\n  out: {type: stdoot}\n";
    let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
    let all = lines.join("\n");
    assert_eq!(lines.len(), 5, "{all}");
    assert!(lines[0].starts_with("f.yaml:1:1: htpp: unknown field `htpp`"), "{all}");
    assert!(lines[0].contains("did you mean `http`?"), "{all}");
    assert!(lines[1].starts_with("f.yaml:2:8: fsync: invalid fsync mode"), "{all}");
    assert!(lines[2].starts_with("f.yaml:3:15: memory_limit: invalid size"), "{all}");
    assert!(lines[3].contains("5:24: retention[0].table: unknown table `lgos`"), "{all}");
    assert!(lines[4].contains("did you mean `stdout`?"), "{all}");
}

#[test]
fn a_bucket_is_named_by_the_file_or_a_flag() {
    let text = "storage: {store: s3://logs/prod, cache_bytes: 1GiB}\n";
    let document = Document::parse(text).unwrap();
    let mut problems = Vec::new();
    let store = build(&document, &ServeArgs::default(), Path::new("."), &mut problems).unwrap().store;
    assert_eq!((store.bucket.unwrap().to_string().as_str(), store.cache_bytes), ("s3://logs/prod", 1 << 30));
    let args = ServeArgs { store: Some("s3://other".into()), ..ServeArgs::default() };
    let store = build(&document, &args, Path::new("."), &mut problems).unwrap().store;
    assert_eq!(store.bucket.unwrap().to_string(), "s3://other");
    assert!(problems.is_empty(), "{problems:?}");
    let ConfigError(lines) = check("storage: {store: gs://x}\n", "f.yaml").unwrap_err();
    assert!(lines[0].starts_with("f.yaml:1:18: storage.store: invalid store `gs://x`"), "{lines:?}");
}

#[test]
fn flushes_are_tuned_within_the_memory_limit() {
    let document = Document::parse("memory_limit: 96MiB\nstorage: {flush_bytes: 64KiB, flush_age: 300ms}\n").unwrap();
    let mut problems = Vec::new();
    let config = build(&document, &ServeArgs::default(), Path::new("."), &mut problems).unwrap();
    assert_eq!((config.store.flush_bytes, config.store.flush_age), (64 << 10, Duration::from_millis(300)));
    let document = Document::parse("memory_limit: 96MiB\nstorage: {flush_bytes: 1GiB}\n").unwrap();
    assert_eq!(
        build(&document, &ServeArgs::default(), Path::new("."), &mut problems).unwrap().store.flush_bytes,
        16 << 20
    );
    assert!(problems.is_empty(), "{problems:?}");
    let ConfigError(lines) = check("storage: {promote: [a.b, a_b]}\n", "f.yaml").unwrap_err();
    assert!(lines[0].contains("same column a_a_b"), "{lines:?}");
    let ConfigError(lines) = check("storage: {flush_age: 0s, flush_bites: 3}\n", "f.yaml").unwrap_err();
    assert!(lines.iter().any(|l| l.contains("did you mean `flush_bytes`?")), "{lines:?}");
}

#[test]
fn downsampling_is_read_and_every_slip_has_its_place() {
    let text = "storage:\n  downsample:\n    - {match: ['{job=\"a\"}', up], resolutions: [1h], after: 2h, query: auto}\n    - {}\n";
    let document = Document::parse(text).unwrap();
    let mut problems = Vec::new();
    let store = build(&document, &ServeArgs::default(), Path::new("."), &mut problems).unwrap().store;
    assert!(problems.is_empty(), "{problems:?}");
    let [first, second] = &store.downsample.rules[..] else { panic!("two rules") };
    assert_eq!((first.selectors.len(), first.resolutions.len(), first.auto), (2, 1, true));
    assert_eq!((first.after, second.after), (Duration::from_secs(7200), Duration::from_secs(3600)));
    assert_eq!((second.selectors.len(), second.resolutions.len(), second.auto), (1, 2, false));
    let text = "storage:\n  downsample:\n    - {match: ['{job='], resolutions: [10m, 5m, 5m]}\n    - {query: yes, \
                tenant: a/b}\n    - {resolution: [5m]}\n    - {resolutions: []}\n";
    let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
    let all = lines.join("\n");
    for wanted in [
        "f.yaml:3:16: storage.downsample[0].match[0]: ",
        "f.yaml:3:40: storage.downsample[0].resolutions[0]: unknown resolution `10m`, expected 5m or 1h",
        "storage.downsample[0].resolutions[2]: `5m` is there twice",
        "f.yaml:4:15: storage.downsample[1].query: unknown choice `yes`, expected raw or auto",
        "storage.downsample[1].tenant: ",
        "f.yaml:5:8: storage.downsample[2].resolution: unknown field `resolution`",
        "storage.downsample[3].resolutions: expected 5m, 1h or both",
    ] {
        assert!(all.contains(wanted), "{wanted} is not in\n{all}");
    }
}

#[test]
fn a_syslog_source_is_read_and_its_slips_are_told() {
    check("sources:\n  net: {type: syslog, udp: '127.0.0.1:1514', utc_offset: '+02:00'}\n", "f.yaml").unwrap();
    let ConfigError(lines) =
        check("sources:\n  net: {type: syslog, udpp: '127.0.0.1:1', utc_offset: '2'}\n", "f.yaml").unwrap_err();
    assert!(lines.iter().any(|l| l.contains("did you mean `udp`?")), "{lines:?}");
    assert!(lines.iter().any(|l| l.contains("sources.net: invalid offset `2`")), "{lines:?}");
}

#[test]
fn wiring_is_checked_too() {
    let text = "sinks:\n  out: {type: stdout, inputs: [psuh]}\n";
    let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
    let slip = lines.iter().find(|l| l.contains("psuh")).unwrap();
    assert!(
        slip.starts_with("f.yaml:2:32: sinks.out.inputs[0]") && slip.contains("did you mean `push`?"),
        "{lines:?}"
    );
    assert!(lines.iter().any(|l| l.contains("sources.containers")), "rows of a source nobody takes: {lines:?}");
    check("no_collect: true\nsinks:\n  out: {type: stdout, inputs: [push]}\n", "f.yaml").unwrap();
}

#[test]
fn dead_letters_have_a_name_also_those_of_where_an_agent_ships() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.yaml");
    std::fs::write(&path, "sinks:\n  later: {type: file, inputs: [to.dead_letter], path: /tmp/refused.ndjson}\n")
        .unwrap();
    let args = |ships_rest| ServeArgs { config: Some(path.clone()), ships_rest, ..ServeArgs::default() };
    let config = Config::load(&args(true)).unwrap();
    assert!(config.named_inputs.contains("to.dead_letter"));
    let ConfigError(lines) = Config::load(&args(false)).unwrap_err();
    assert!(lines.iter().any(|l| l.contains("there is no source or transform `to.dead_letter`")), "{lines:?}");
    let text = "no_collect: true\ntransforms:\n  p: {type: parse, inputs: [push], format: json}\nsinks:\n  \
                a: {type: store, inputs: [p, p.dead_letter, b.dead_letter]}\n  \
                b: {type: loki, inputs: [p, a.dead_letter], url: 'http://x'}\n";
    let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
    let told = "f.yaml:6:31: sinks.b.inputs[1]: `a` has no dead letters: it refuses nothing";
    assert_eq!(lines, [told]);
    check(&text.replace(", a.dead_letter", ""), "f.yaml").unwrap();
}

#[test]
fn tests_of_the_file_are_checked_with_it() {
    let text = "no_collect: true\ntransforms:\n  f: {type: filter, inputs: [push], condition: '.body == \"a\"'}\n\
                tests:\n  - {name: one, insert_at: g, input: [{bdoy: a}], expect: dropped}\n  - {nmae: two}\n";
    let ConfigError(lines) = check(text, "f.yaml").unwrap_err();
    assert!(lines.iter().any(|l| l.starts_with("f.yaml:6:6: tests[1].nmae: unknown field")), "{lines:?}");
    let text = text.replace("  - {nmae: two}\n", "");
    let ConfigError(lines) = check(&text, "f.yaml").unwrap_err();
    assert!(lines.iter().any(|l| l.starts_with("f.yaml:5:28: tests[0].insert_at: there is no")), "{lines:?}");
    assert!(lines.iter().any(|l| l.contains("tests[0].input[0].bdoy") && l.contains("`body`")), "{lines:?}");
}

#[test]
fn a_failing_test_says_where_it_expects_what() {
    let text = "no_collect: true\ntransforms:\n  f: {type: filter, inputs: [push], condition: '.body == \"a\"'}\n\
                tests:\n  - {name: one, insert_at: f, input: [{body: a}], expect: dropped}\n\
                \x20 - {name: two, insert_at: f, input: [{body: a}],\n     expect: [{body: b}]}\n\
                \x20 - {name: three, insert_at: f, input: [{body: b}], expect: dropped}\n";
    let outcomes = test(text, "f.yaml").unwrap();
    assert_eq!(outcomes.len(), 3);
    assert!(
        outcomes[0].problems[0].starts_with("f.yaml:5:59: tests[0].expect: expected no row, got 1 row"),
        "{:?}",
        outcomes[0].problems
    );
    assert!(
        outcomes[1].problems[0].starts_with("f.yaml:7:22: tests[1].expect[0].body: expected \"b\""),
        "{:?}",
        outcomes[1].problems
    );
    assert!(outcomes[2].problems.is_empty());
}

/// The worked example of the README is kept beside this test, so that it is always right.
#[test]
fn the_example_of_the_readme_passes_its_own_tests() {
    let outcomes = test(include_str!("example.yaml"), "example.yaml").unwrap_or_else(|e| panic!("{:#?}", e.0));
    assert!(outcomes.len() >= 4);
    for outcome in &outcomes {
        assert!(outcome.problems.is_empty(), "{}: {:#?}", outcome.name, outcome.problems);
    }
}

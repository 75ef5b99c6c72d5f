use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

const AUTO: ContextLength = ContextLength::Auto;

fn tokens(n: u32) -> ContextLength {
    ContextLength::Tokens(n)
}

fn gb(tenths: u64) -> Option<u64> {
    Some(tenths * (GB / 10))
}

/// The default table, on a device of `gb` GB.
fn bounds(asked: ContextLength, model: Option<usize>, tenths: u64) -> ContextBounds<'static> {
    ContextBounds::new(asked, model, &ContextTiers::default(), gb(tenths))
}

#[test]
fn the_row_is_that_of_the_memory_that_is_fitted() {
    let tiers = ContextTiers::default();
    let of = |tenths| tiers.row(gb(tenths)).tokens;
    assert_eq!([40, 80, 110, 111, 119, 120, 240].map(of), [2048, 2048, 2048, 4096, 4096, 4096, 4096]);
    assert_eq!(tiers.row(Some(11 * GB + 1)).tokens, 4096);
    assert_eq!(tiers.row(None).tokens, 2048);
    assert_eq!([0, u64::MAX].map(|bytes| tiers.row(Some(bytes)).tokens), [2048, 4096]);
    let other = ContextTiers::new([ContextTier::new(16 * GB, 900), ContextTier::new(0, 100)]).unwrap();
    assert_eq!([150, 151, 160].map(|tenths| other.row(gb(tenths)).tokens), [100, 900, 900]);
}

#[test]
fn a_table_that_leaves_memory_without_a_context_is_refused() {
    let refused = |rows: &[(u64, u32)]| {
        let error = ContextTiers::new(rows.iter().map(|(from, tokens)| ContextTier::new(*from, *tokens))).unwrap_err();
        assert_eq!(error.code(), "invalid_spec");
        error.to_string()
    };
    for (rows, said) in [
        (&[][..], "no rows"),
        (&[(7, 1)], "from 7 bytes on"),
        (&[(0, 1), (5, 0)], "from 5 bytes on has 0 tokens"),
        (&[(0, 1), (9, 2), (9, 2)], "two rows from 9 bytes on"),
        (&[(0, 800), (9, 700)], "has 800 tokens, and the next, from 9 bytes on, 700"),
    ] {
        assert!(refused(rows).contains(said), "{}", refused(rows));
    }
}

#[test]
fn a_table_is_data() {
    let json = r#"[{"from_bytes":0,"tokens":2048},{"from_bytes":12000000000,"tokens":4096}]"#;
    assert_eq!(serde_json::to_string(&ContextTiers::default()).unwrap(), json);
    assert_eq!(serde_json::from_str::<ContextTiers>(json).unwrap(), ContextTiers::default());
    let error = serde_json::from_str::<ContextTiers>(r#"[{"from_bytes":1,"tokens":2048}]"#).unwrap_err();
    assert!(error.to_string().contains("expected one with `from_bytes` 0"), "{error}");
    let error = serde_json::from_str::<ContextTiers>(r#"[{"from_bytes":0,"tokens":1,"token":2}]"#).unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
}

#[test]
fn the_lowest_bound_decides_and_says_so() {
    for (asked, model, tenths, backend, expected, said) in [
        (AUTO, Some(8192), 80, None, 2048, "2048 is the most for a device with 8 GB of memory"),
        (AUTO, Some(8192), 119, None, 4096, "4096 is the most for a device with 12 GB of memory"),
        (AUTO, Some(1024), 240, None, 1024, "the model was made for 1024"),
        (AUTO, None, 240, Some(512), 512, "backend `x` can hold 512 tokens of this model at most"),
        (AUTO, Some(8192), 240, Some(9000), 4096, "4096 is the most for a device with 24 GB of memory"),
        (tokens(300), Some(8192), 240, Some(301), 300, "the spec asks for 300"),
        (tokens(4096), Some(4096), 240, Some(4096), 4096, "the spec asks for 4096"),
        (tokens(3000), Some(1024), 240, None, 1024, "the spec asks for 3000, but the model was made for 1024"),
        (
            tokens(8192),
            Some(8192),
            240,
            None,
            4096,
            "the spec asks for 8192, but 4096 is the most for a device with 24 GB of memory; `EngineBuilder::memory` takes \
             another table (`MemoryPolicy::context_tiers`)",
        ),
        (
            tokens(700),
            None,
            240,
            Some(600),
            600,
            "the spec asks for 700, but backend `x` can hold 600 tokens of this model at most",
        ),
    ] {
        let context = bounds(asked, model, tenths).with_backend("x", backend).context();
        assert_eq!((context.tokens, &*context.reason), (expected, said));
    }
}

#[test]
fn unknown_memory_gets_the_first_row_and_says_so() {
    let context = ContextBounds::new(AUTO, None, &ContextTiers::default(), None).context();
    assert_eq!(context.tokens, 2048);
    assert_eq!(context.reason, "2048 is the most for a device whose memory is not known");
}

#[test]
fn a_table_without_bounds_leaves_the_others() {
    let of = |asked, model| ContextBounds::new(asked, model, &ContextTiers::unlimited(), gb(40)).context();
    assert_eq!(of(AUTO, Some(131_072)).tokens, 131_072);
    assert_eq!(of(tokens(u32::MAX), None).tokens, u32::MAX as usize);
    let context = of(AUTO, None);
    assert_eq!(context.tokens, 4096);
    assert!(context.reason.starts_with("4096, as neither the spec"), "{}", context.reason);
}

/// Bytes of weights, and of each token.
fn linear(weights: u64, token: u64) -> impl Fn(usize) -> Result<u64> {
    move |tokens| Ok(weights + tokens as u64 * token)
}

#[test]
fn what_fits_is_not_told_and_unknown_room_is_not_asked_for() {
    let bounds = bounds(AUTO, Some(1024), 40);
    assert_eq!(bounds.fitting(Some(2024), linear(1000, 1)).unwrap(), bounds.context());
    let never = |_| -> Result<u64> { panic!("it was asked") };
    assert_eq!(bounds.fitting(None, never).unwrap(), bounds.context());
}

#[test]
fn an_automatic_context_is_shortened_to_whole_steps_that_fit() {
    let context = bounds(AUTO, Some(1024), 40).fitting(Some(2000), linear(1000, 1)).unwrap();
    assert_eq!(context.tokens, 960);
    assert_eq!(context.reason, "what fits into 2.0 kB; 1024 tokens would take 2.0 kB (the model was made for 1024)");
    // Down to 256, or to all that the model was made for.
    assert_eq!(bounds(AUTO, Some(1024), 40).fitting(Some(1256), linear(1000, 1)).unwrap().tokens, 256);
    assert_eq!(bounds(AUTO, Some(100), 40).fitting(Some(1100), linear(1000, 1)).unwrap().tokens, 100);
}

/// Required and available bytes, the longest context that would fit, and the hint.
fn short(result: Result<DecidedContext>) -> (u64, u64, Option<usize>, String) {
    match result {
        Err(Error::InsufficientMemory { required, available, largest_context, hint, .. }) => {
            (required, available, largest_context, hint.unwrap())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn below_the_shortest_automatic_context_memory_is_short() {
    let (required, available, largest, hint) = short(bounds(AUTO, Some(1024), 40).fitting(Some(1255), linear(1000, 1)));
    assert_eq!((required, available, largest), (1256, 1255, Some(192)));
    assert!(hint.contains("a context of 256 tokens") && hint.contains("192 would fit"), "{hint}");
    let (required, _, largest, _) = short(bounds(AUTO, Some(100), 40).fitting(Some(1099), linear(1000, 1)));
    assert_eq!((required, largest), (1100, Some(64)));
}

#[test]
fn a_context_that_was_asked_for_is_not_shortened_to_what_fits() {
    let (required, available, largest, hint) =
        short(bounds(tokens(2000), Some(8192), 40).fitting(Some(1500), linear(1000, 1)));
    assert_eq!((required, available, largest), (3000, 1500, Some(448)));
    assert!(hint.contains("2000 tokens (the spec asks for 2000); 448 would fit"), "{hint}");
    // But the other bounds do shorten it.
    let context = bounds(tokens(9000), Some(8192), 40).fitting(Some(3048), linear(1000, 1)).unwrap();
    assert_eq!(context.tokens, 2048);
    let (required, _, largest, hint) = short(bounds(tokens(9000), Some(8192), 40).fitting(Some(1037), linear(1000, 1)));
    assert_eq!((required, largest), (3048, Some(37)));
    assert!(hint.contains("the spec asks for 9000, but 2048 is the most"), "{hint}");
}

#[test]
fn weights_that_do_not_fit_are_told_with_the_shortest_context() {
    for asked in [AUTO, tokens(1000)] {
        let (required, available, largest, hint) =
            short(bounds(asked, Some(8192), 40).fitting(Some(1000), linear(1000, 2)));
        assert_eq!((required, available, largest), (1512, 1000, None));
        assert!(hint.contains("256 tokens") && hint.contains("beside the weights"), "{hint}");
    }
}

#[test]
fn an_error_of_the_estimate_is_passed_on() {
    for from in [1, 300, 1024] {
        let estimate = |tokens| if tokens >= from { Err(Error::Cancelled) } else { Ok(10) };
        let error = bounds(AUTO, Some(1024), 40).fitting(Some(5), estimate).unwrap_err();
        assert_eq!(error.code(), "cancelled");
    }
    // After the first one.
    let estimate = |tokens| if tokens < 1024 { Err(Error::Cancelled) } else { Ok(10) };
    assert_eq!(bounds(AUTO, Some(1024), 40).fitting(Some(5), estimate).unwrap_err().code(), "cancelled");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_context_is_that_of_a_search_through_all(
        asked in prop::option::of(1u32..1500),
        model in prop::option::of(1usize..1500),
        tier in 1u32..1500,
        backend in prop::option::of(1usize..1500),
        room in prop::option::of(0u64..4000),
        weights in 0u64..3000,
        // Bytes of a block, and its tokens: up to blocks that make plateaus of hundreds of tokens.
        (bytes, block) in (0u64..400, 1usize..400),
    ) {
        let estimate = |tokens: usize| weights + bytes * tokens.div_ceil(block) as u64;
        let tiers = ContextTiers::new([ContextTier::new(0, tier)]).unwrap();
        let asked = asked.map_or(AUTO, tokens);
        let bound = [
            match asked { ContextLength::Tokens(n) => n as usize, _ => usize::MAX },
            model.unwrap_or(usize::MAX),
            tier as usize,
            backend.unwrap_or(usize::MAX),
        ].into_iter().min().unwrap();
        let calls = RefCell::new(Vec::new());
        let bounds = ContextBounds::new(asked, model, &tiers, None).with_backend("x", backend);
        let found = bounds.fitting(room, |tokens| {
            calls.borrow_mut().push(tokens);
            Ok(estimate(tokens))
        });
        let calls = calls.into_inner();
        prop_assert!(calls.iter().all(|tokens| *tokens <= bound), "{calls:?} of {bound}");
        prop_assert!(calls.len() <= 3 + bound.ilog2() as usize + 1, "{calls:?} of {bound}");

        let fits = |tokens: usize| room.is_none_or(|room| estimate(tokens) <= room);
        let largest = (1..=bound).rev().find(|tokens| fits(*tokens));
        let stepped = largest.map(|most| if most >= 64 { most - most % 64 } else { most });
        let fewest = bound.min(256);
        match found {
            Ok(context) if fits(bound) => prop_assert_eq!(context.tokens, bound),
            Ok(context) => {
                prop_assert_eq!(asked, AUTO);
                prop_assert_eq!(Some(context.tokens), stepped);
                prop_assert!(context.tokens >= fewest && fits(context.tokens));
                let bytes = [estimate(bound), room.unwrap()].map(|bytes| DecimalBytes(bytes).to_string());
                for number in bytes.iter().chain([&bound.to_string()]) {
                    prop_assert!(context.reason.contains(number), "{}", context.reason);
                }
            }
            Err(Error::InsufficientMemory { required, available, largest_context, hint: Some(hint), .. }) => {
                prop_assert!(!fits(bound) && (asked != AUTO || stepped.is_none_or(|most| most < fewest)));
                prop_assert_eq!((Some(available), largest_context), (room, stepped));
                let told = if asked == AUTO || stepped.is_none() { fewest } else { bound };
                prop_assert_eq!(required, estimate(told));
                prop_assert!(required > available && hint.contains(&told.to_string()));
                if let Some(most) = stepped {
                    prop_assert!(hint.contains(&most.to_string()), "{}", hint);
                }
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

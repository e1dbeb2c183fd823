//! Values of settings: read, compared, merged, written. Pure.
//!
//! Invariant: merging lowers nothing but modes, which are no quantities ([`Rule::Exactly`]).

/// Numbers in one file of /proc/sys, at most.
const NUMBERS_MAX: usize = 8;

/// How a value is compared with the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Quantities, each at least as high as wanted.
    AtLeast,
    /// A mode: it is that number or it is not.
    Exactly,
    /// A first and a last number that span the wanted ones.
    Widest,
    /// Quantities, each at most as high as wanted.
    AtMost,
    /// Words that should not be there; the second is what should.
    Avoid(&'static [&'static str], &'static str),
}

/// Numbers between white space; `max`, `infinity` and `unlimited` are the highest. `None` when it is anything else.
pub fn parse(text: &str) -> Option<Vec<u64>> {
    let numbers = text.split_whitespace().map(|word| match word {
        "max" | "infinity" | "unlimited" => Some(u64::MAX),
        digits => digits.parse().ok(),
    });
    let numbers: Vec<u64> = numbers.take(NUMBERS_MAX + 1).collect::<Option<_>>()?;
    (1..=NUMBERS_MAX)
        .contains(&numbers.len())
        .then_some(numbers)
}

/// As /proc/sys takes them.
pub fn text(numbers: &[u64]) -> String {
    let words: Vec<String> = numbers
        .iter()
        .map(|number| match number {
            &u64::MAX => "infinity".into(),
            number => number.to_string(),
        })
        .collect();
    words.join(" ")
}

impl Rule {
    /// Whether `now` is good enough. Both have the same length.
    pub fn holds(self, now: &[u64], wanted: &[u64]) -> bool {
        if now.len() != wanted.len() {
            return false;
        }
        let each = |good: fn(&u64, &u64) -> bool| {
            now.iter()
                .zip(wanted)
                .all(|(now, wanted)| good(now, wanted))
        };
        match self {
            Self::AtLeast => each(|now, wanted| now >= wanted),
            Self::AtMost => each(|now, wanted| now <= wanted),
            Self::Exactly => now == wanted,
            Self::Widest => self.merge(now, wanted) == now,
            Self::Avoid(..) => false,
        }
    }

    /// What to set: the wanted value where `now` is not good enough, and nothing lowered.
    pub fn merge(self, now: &[u64], wanted: &[u64]) -> Vec<u64> {
        let each = |choose: fn(u64, u64) -> u64| -> Vec<u64> {
            now.iter()
                .zip(wanted)
                .map(|(now, wanted)| choose(*now, *wanted))
                .collect()
        };
        match (self, now, wanted) {
            (Self::AtLeast, ..) if now.len() == wanted.len() => each(u64::max),
            (Self::AtMost, ..) if now.len() == wanted.len() => each(u64::min),
            (Self::Widest, &[first, last], &[low, high]) => vec![first.min(low), last.max(high)],
            _ => wanted.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn triples_are_raised_element_by_element() {
        let merged = Rule::AtLeast.merge(&[4096, 131_072, 65_536], &[8192, 16_384, 1 << 20]);
        assert_eq!(merged, [8192, 131_072, 1 << 20]);
        assert!(!Rule::AtLeast.holds(&[4096, 131_072, 65_536], &[8192, 16_384, 1 << 20]));
    }

    #[test]
    fn port_ranges_become_the_wider_of_both() {
        assert_eq!(
            Rule::Widest.merge(&[40_000, 64_000], &[32_768, 60_999]),
            [32_768, 64_000]
        );
        assert!(Rule::Widest.holds(&[1024, 65_535], &[32_768, 60_999]));
        assert!(!Rule::Widest.holds(&[1024, 50_000], &[32_768, 60_999]));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        assert_eq!(
            parse("4096\t16384 4194304\n"),
            Some(vec![4096, 16_384, 4_194_304])
        );
        assert_eq!(parse("max"), Some(vec![u64::MAX]));
        for bad in [
            "",
            "  \n",
            "-1",
            "1 x",
            "1 2 3 4 5 6 7 8 9",
            "99999999999999999999999",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    fn rules() -> impl Strategy<Value = Rule> {
        prop_oneof![
            Just(Rule::AtLeast),
            Just(Rule::Exactly),
            Just(Rule::Widest),
            Just(Rule::AtMost)
        ]
    }

    proptest! {
        #[test]
        fn what_is_merged_holds_and_stays(rule in rules(), now in vec(0..1_000_u64, 2), wanted in vec(0..1_000_u64, 2)) {
            let merged = rule.merge(&now, &wanted);
            prop_assert!(rule.holds(&merged, &wanted));
            prop_assert_eq!(rule.merge(&merged, &wanted), merged);
        }

        #[test]
        fn nothing_is_lowered(now in vec(any::<u64>(), 3), wanted in vec(any::<u64>(), 3)) {
            let merged = Rule::AtLeast.merge(&now, &wanted);
            prop_assert!(merged.iter().zip(&now).all(|(merged, now)| merged >= now));
        }

        #[test]
        fn triples_stay_in_order(mut now in vec(any::<u64>(), 3), mut wanted in vec(any::<u64>(), 3)) {
            now.sort_unstable();
            wanted.sort_unstable();
            prop_assert!(Rule::AtLeast.merge(&now, &wanted).is_sorted());
        }

        #[test]
        fn values_survive_writing_and_reading(numbers in vec(any::<u64>(), 1..=8)) {
            prop_assert_eq!(parse(&text(&numbers)), Some(numbers));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}

//! YAML in and out. Pure.

use serde_json::Value;

/// Text of one document, without a separator, ending in a line break.
pub(super) fn print(value: &Value) -> String {
    // Long SQL stays on one line, so that a diff shows what was typed; several lines become a literal block.
    let options = serde_saphyr::ser_options! {
        folded_wrap_chars: usize::MAX,
        compact_list_indent: true,
    };
    let text = serde_saphyr::to_string_with_options(value, options);
    // A JSON value holds nothing that YAML cannot; JSON is YAML too, should the printer ever refuse.
    let mut text = text.unwrap_or_else(|_| value.to_string());
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Every document of a text, empty ones left out.
pub(super) fn parse(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! {
        with_snippet: false,
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| error.to_string())?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_split() {
        let text = "---\na: 1\n---\n# nothing\n---\nb: [x, 'y']\n";
        assert_eq!(
            parse(text).unwrap(),
            [json!({"a": 1}), json!({"b": ["x", "y"]})]
        );
        assert_eq!(parse("").unwrap(), Vec::<Value>::new());
    }

    #[test]
    fn mistakes_have_a_place() {
        let error = parse("a: 1\na: 2\n").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        let error = parse("a: [1\nb: 2\n").unwrap_err();
        assert!(error.contains("line"), "{error}");
    }

    #[test]
    fn sql_is_readable() {
        let long = format!("SELECT {} FROM t", "column, ".repeat(30));
        let text =
            print(&json!({"query": "SELECT a,\n  b\nFROM t\nWHERE c = 'd: e';", "long": long}));
        assert_eq!(
            text,
            format!("query: |-\n  SELECT a,\n    b\n  FROM t\n  WHERE c = 'd: e';\nlong: {long}\n")
        );
    }

    #[test]
    fn words_that_look_like_other_types_stay_texts() {
        for word in [
            "yes",
            "no",
            "on",
            "true",
            "null",
            "~",
            "",
            "1",
            "1.0",
            "0x1f",
            "1e3",
            ".inf",
            "2026-01-01",
            "- a",
            "# a",
            "a: b",
            "a #b",
            "%x",
            "@x",
            "`x",
            "*x",
            "&x",
            "!x",
            "|",
            ">",
            "'",
            "\"",
            " x",
            "x ",
            "\tx",
            "x\n",
            "\n",
            "\nx",
            "  x\ny",
            "x\n\n\n",
            "a\r\nb",
            "\u{85}",
            "\u{2028}",
            "é",
        ] {
            let value = json!({"a": word, "b": [word, {"c": word}]});
            let text = print(&value);
            assert_eq!(
                parse(&text).as_deref(),
                Ok(&[value][..]),
                "{word:?} as {text}"
            );
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,20}".prop_map(Value::from),
            "[a-z:#'\" \n\t-]{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-z0-9_ :#-]{0,8}", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed_again(value in value()) {
            let document = json!({"spec": value});
            let text = print(&document);
            prop_assert_eq!(parse(&text), Ok(vec![document]), "{}", text);
        }
    }
}

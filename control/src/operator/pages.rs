//! Lists that are short enough to be read whole, such as queries: searched, sorted and cut into pages. Pure.

use fleet_protocol::ids::UnixSeconds;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::host_filter::{PER_PAGE_MAX, is_descending, number};

/// Parameters of such a list. Those of Fleet that mean nothing here are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    pub(super) page: Option<String>,
    /// Absent: everything.
    pub(super) per_page: Option<String>,
    pub(super) order_key: Option<String>,
    pub(super) order_direction: Option<String>,
    /// Part of the name, whatever its case.
    pub(super) query: Option<String>,
}

/// What an item is found and sorted by.
pub(super) struct Sorted<'i> {
    pub(super) id: u32,
    pub(super) name: &'i str,
    pub(super) updated_at: UnixSeconds,
}

/// A part of a list.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// On all pages.
    pub(super) count: usize,
    pub(super) has_next: bool,
    pub(super) has_previous: bool,
}

impl<T> Page<T> {
    /// As Fleet tells it.
    pub(super) fn meta(&self) -> Value {
        json!({"has_next_results": self.has_next, "has_previous_results": self.has_previous})
    }
}

impl Parameters {
    /// The page of a list.
    pub(super) fn cut<T>(
        &self,
        mut items: Vec<T>,
        sorted: impl Fn(&T) -> Sorted<'_>,
    ) -> Result<Page<T>, Fault> {
        if let Some(text) = self.query.as_deref().filter(|text| !text.is_empty()) {
            let text = text.to_lowercase();
            items.retain(|item| sorted(item).name.to_lowercase().contains(&text));
        }
        match self.order_key.as_deref() {
            None | Some("" | "name") => items.sort_by(|a, b| sorted(a).name.cmp(sorted(b).name)),
            Some("id") => items.sort_by_key(|item| sorted(item).id),
            Some("created_at" | "updated_at") => {
                items.sort_by_key(|item| (sorted(item).updated_at, sorted(item).id));
            }
            Some(_) => {
                let reason = "must be name, id, created_at or updated_at";
                return Err(Fault::parameter("order_key", reason));
            }
        }
        if is_descending(self.order_direction.as_deref())? {
            items.reverse();
        }
        let count = items.len();
        let page = number("page", self.page.as_deref())?.unwrap_or_default();
        let per_page = match number("per_page", self.per_page.as_deref())? {
            None | Some(0) => count,
            Some(rows) if rows > PER_PAGE_MAX => {
                let reason = format!("must not be above {PER_PAGE_MAX}");
                return Err(Fault::parameter("per_page", reason));
            }
            Some(rows) => usize::try_from(rows).unwrap_or(count),
        };
        let page = usize::try_from(page).unwrap_or(usize::MAX);
        let skipped = page.saturating_mul(per_page).min(count);
        let items: Vec<T> = items.into_iter().skip(skipped).take(per_page).collect();
        Ok(Page {
            has_next: skipped + items.len() < count,
            has_previous: skipped > 0,
            items,
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parameters: &Parameters) -> Vec<&'static str> {
        let items = vec![("b", 1), ("A", 2), ("ab", 3)];
        let page = parameters.cut(items, |(name, id)| Sorted {
            id: *id,
            name,
            updated_at: UnixSeconds(9 - id),
        });
        page.unwrap().items.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn lists_are_searched_sorted_and_cut() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(names(&Parameters::default()), ["A", "ab", "b"]);
        let parameters = Parameters {
            query: text("B"),
            order_key: text("id"),
            order_direction: text("desc"),
            ..Parameters::default()
        };
        assert_eq!(names(&parameters), ["ab", "b"]);
        let mut parameters = Parameters {
            order_key: text("updated_at"),
            per_page: text("2"),
            ..Parameters::default()
        };
        assert_eq!(names(&parameters), ["ab", "A"]);
        parameters.page = text("1");
        assert_eq!(names(&parameters), ["b"]);
        parameters.page = text("4294967295");
        assert_eq!(names(&parameters), [""; 0]);
    }
}

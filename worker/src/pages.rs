//! A growing array in pages of one size: growth copies nothing and leaves no room behind but in the last page, and what
//! shrinks gives its pages back.

/// Elements in a page.
pub(crate) const PAGE: usize = 4096;

/// The array.
pub(crate) struct Pages<T>(Vec<Vec<T>>);

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Pages<T> {
    pub(crate) fn len(&self) -> usize {
        // All pages but the last are full.
        self.0
            .last()
            .map_or(0, |last| (self.0.len() - 1) * PAGE + last.len())
    }

    pub(crate) fn get(&self, place: usize) -> Option<&T> {
        self.0.get(place / PAGE)?.get(place % PAGE)
    }

    pub(crate) fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.0.get_mut(place / PAGE)?.get_mut(place % PAGE)
    }

    pub(crate) fn push(&mut self, element: T) {
        if let Some(last) = self.0.last_mut()
            && last.len() < PAGE
        {
            last.push(element);
            return;
        }
        // The first page grows with what is in it: most tables are small.
        let mut page = Vec::new();
        if !self.0.is_empty() {
            page.reserve_exact(PAGE);
        }
        page.push(element);
        self.0.push(page);
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let last = self.0.last_mut()?;
        let element = last.pop();
        if last.is_empty() {
            self.0.pop();
        }
        element
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let elements: usize = self.0.iter().map(Vec::capacity).sum();
        elements * size_of::<T>() + self.0.capacity() * size_of::<Vec<T>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_an_array_over_its_pages() {
        let (mut pages, mut model) = (Pages::default(), Vec::new());
        for number in 0..2 * PAGE + 3 {
            pages.push(number);
            model.push(number);
            assert_eq!(pages.len(), model.len());
        }
        for place in [
            0,
            1,
            PAGE - 1,
            PAGE,
            2 * PAGE,
            2 * PAGE + 2,
            2 * PAGE + 3,
            usize::MAX,
        ] {
            assert_eq!(pages.get(place), model.get(place));
        }
        *pages.get_mut(PAGE).unwrap() = 7;
        model[PAGE] = 7;
        while let Some(element) = model.pop() {
            assert_eq!(pages.pop(), Some(element));
            assert_eq!(pages.len(), model.len());
        }
        assert_eq!(pages.pop(), None);
        assert_eq!(pages.0.len(), 0);
    }
}

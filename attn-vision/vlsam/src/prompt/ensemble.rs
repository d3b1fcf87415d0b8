//! Ensembles (section 2.7): an image seen at two scales, and asked about in several ways.

use super::boxes::PixelBox;

/// A part of an image that is looked at as if it were all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct View {
    /// The part, in pixels of the image.
    pub part: PixelBox,
    /// Rows and columns of pixels of the whole image.
    pub full: (u32, u32),
}

impl View {
    /// The whole of an image of `(height, width)` pixels.
    pub fn full(size: (u32, u32)) -> View {
        View { part: PixelBox::new(0, 0, size.1, size.0), full: size }
    }

    /// Rows and columns of pixels of the part.
    pub fn size(&self) -> (u32, u32) {
        (self.part.height(), self.part.width())
    }

    /// A box of the part in pixels of the image.
    pub fn to_full(&self, inner: &PixelBox) -> PixelBox {
        inner.moved(self.part.x0, self.part.y0)
    }
}

/// The whole image of `(height, width)` pixels and, where it has at least two rows and columns, its
/// corners in the order upper left, upper right, lower left, lower right. A corner has half of the rows
/// and columns; where their number is odd, it has the middle one too.
pub fn views(size: (u32, u32), multi_scale: bool) -> Vec<View> {
    let (height, width) = size;
    let mut views = vec![View::full(size)];
    if multi_scale && height >= 2 && width >= 2 {
        let half = (height.div_ceil(2), width.div_ceil(2));
        for y in [0, height / 2] {
            for x in [0, width / 2] {
                let part = PixelBox::new(x, y, x.saturating_add(half.1), y.saturating_add(half.0));
                views.push(View { part, full: size });
            }
        }
    }
    views
}

/// Ten ways to ask for what is in an image, for recognisers that do not write their own questions.
pub const QUESTIONS: [&str; 10] = [
    "List every object that can be seen in this image.",
    "Which things are in the foreground of the image?",
    "Which things are in the background of the image?",
    "Name all small objects in the image, also those that are partly hidden.",
    "Which people, animals and plants are there?",
    "Which vehicles, machines and tools are there?",
    "Which pieces of furniture and household objects are there?",
    "Which food, drink, clothes and personal belongings are there?",
    "What stands, lies or hangs near the edges of the image?",
    "Which objects in this image would one not expect there?",
];

/// The names of several answers, each once, in the order in which they first appear. Case, and space
/// around a name, do not count; empty names are left out.
pub fn union_names<S: AsRef<str>>(answers: &[Vec<S>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in answers.iter().flatten() {
        let name = normal_name(name.as_ref());
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A name without what does not tell it from another.
pub(crate) fn normal_name(name: &str) -> String {
    name.trim().to_lowercase()
}

use super::Tokenizer;
use crate::Result;

/// What stands for bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{FFFD}';

/// Decodes one token after the other, and gives whole characters only.
///
/// The pieces joined are the text that [`Tokenizer::decode`] gives for all tokens at once.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    /// Some tokens whose text is out already, then those whose text is not whole yet.
    ids: Vec<u32>,
    /// Number of the former.
    context: usize,
    /// Bytes of the text of `ids` that are out.
    shown: usize,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), context: 0, shown: 0 }
    }

    /// The text that became whole with this token; often one token's text, empty inside a character.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer).
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // Bytes that may become a character decode to one replacement at the end; those in front of it
        // are final.
        let whole = text.strip_suffix(REPLACEMENT).unwrap_or(&text);
        let piece = whole.get(self.shown..).unwrap_or_default().to_owned();
        if whole.len() < text.len() {
            self.shown = self.shown.max(whole.len());
            return Ok(piece);
        }
        // Decoders may treat the first token of a text in its own way, so the last piece stays as context.
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.shown = self.tokenizer.decode(&self.ids)?.len();
        Ok(piece)
    }

    /// The rest, where the last character did not become whole: its bytes as U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer).
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(self.shown..).unwrap_or_default().to_owned())
    }
}

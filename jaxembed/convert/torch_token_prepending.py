"""Token prepending for sentence-transformers, in PyTorch.

This file is written by jaxembed next to a model's weights and needs nothing but
torch and sentence-transformers (6.0 or newer, which hands prompts over apart from
texts). A placeholder token stands between prompt and text; before each layer of a band
its state becomes that of the text's last token, so that all tokens see the sentence
(Fu et al. 2024, "Token Prepending", arXiv 2412.11556).
"""

from typing import Any, ClassVar

from sentence_transformers.base.modules import Transformer
from tokenizers import AddedToken
import torch
from torch import nn


class TokenPrependingTransformer(Transformer):
  """Texts -> token embeddings of a model with a prepended token."""

  config_keys: ClassVar[list[str]] = [
      *Transformer.config_keys, 'prepend_text', 'prepend_id', 'prepend_start',
      'prepend_stop', 'append_text']

  def __init__(self, model_name_or_path: str, *, prepend_text: str, prepend_id: int,
               prepend_start: int, prepend_stop: int, append_text: str = '',
               **kwargs: Any):
    super().__init__(model_name_or_path, **kwargs)
    self.prepend_text = prepend_text  # what the tokenizer reads as the placeholder
    self.prepend_id = prepend_id  # its row of the token table
    self.prepend_start = prepend_start  # the first layer of the band
    self.prepend_stop = prepend_stop  # the layer after its last
    self.append_text = append_text  # behind every text, and cut with it
    self.tokenizer.add_tokens(
        [AddedToken(prepend_text, special=True, normalized=False)], special_tokens=True)
    self._places = None  # (row of the placeholder, of the last token), of a batch
    for layer in _layers(self.auto_model)[prepend_start:prepend_stop]:
      layer.register_forward_pre_hook(self._overwrite, with_kwargs=True)

  def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict:
    """Tokens of texts with the placeholder behind the prompt; TypeError for others."""
    if not all(isinstance(text, str) for text in inputs):
      raise TypeError('a model with a prepended token takes plain texts')
    features = super().preprocess(
        [(prompt or '') + self.prepend_text + text + self.append_text
         for text in inputs], **kwargs)
    if prompt:
      alone = super().preprocess([prompt], **kwargs)['input_ids'][0]
      # A special token behind the prompt is not one of its own.
      features['prompt_length'] = len(alone) - (
          int(alone[-1]) in self.tokenizer.all_special_ids)
    ids = features['input_ids']
    spelt = self.tokenizer.convert_tokens_to_ids(self.prepend_text)
    features['input_ids'] = ids.masked_fill(ids == spelt, self.prepend_id)
    return features

  def forward(self, features: dict, **kwargs: Any) -> dict:
    """`features` with the token embeddings added."""
    ids, mask = features['input_ids'], features.get('attention_mask')
    if mask is None or mask.shape != ids.shape:
      raise ValueError(
          'token prepending needs padded inputs with an attention_mask of shape '
          f'{tuple(ids.shape)}; load the model with attn_implementation="sdpa" or '
          'without unpad_inputs')
    at = torch.arange(ids.shape[1], device=ids.device)
    here = (ids == self.prepend_id) & mask.bool()
    first = here & (here.cumsum(1) == 1)
    self._places = first, (mask.bool() * at).argmax(1)
    try:
      return super().forward(features, **kwargs)
    finally:
      self._places = None

  def _overwrite(self, layer, args, kwargs):
    """The inputs of a layer with the placeholder's state replaced."""
    del layer
    x = args[0] if args else kwargs['hidden_states']
    first, last = self._places
    summary = x[torch.arange(len(x), device=x.device), last][:, None]
    x = torch.where(first[:, :, None], summary, x)
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, 'hidden_states': x})


def _layers(model: nn.Module) -> nn.ModuleList:
  """The stack of a model's layers, by its length."""
  count = model.config.num_hidden_layers
  return next(m for m in model.modules()
              if isinstance(m, nn.ModuleList) and len(m) == count)

"""Reads a picture and draws one: python demo.py PICTURE.png "a red circle"."""

import pathlib
import sys

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = pathlib.Path(__file__).resolve().parent
device = "cuda" if torch.cuda.is_available() else "cpu"
trusted = dict(trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, **trusted)
model = AutoModelForImageTextToText.from_pretrained(folder, **trusted)
model = model.to(device).eval()

picture = Image.open(sys.argv[1])
inputs = processor(images=picture)
print("caption:", processor.texts(model.caption(**inputs))[0])
codes, _ = model.tokenize(inputs["pixel_values"], inputs["selection_noise"])
print("codes of the picture:", codes[0].tolist())

drawn = model.draw_codes(**processor(text=sys.argv[2], drawing=True))
print("codes of the drawing:", drawn[0].tolist())
if (folder / "pixels").is_dir():
  pipeline = DiffusionPipeline.from_pretrained(folder / "pixels", **trusted)
  images = pipeline.to(device)([*codes, *drawn]).images
  for name, image in zip(("again.png", "drawing.png"), images):
    image.save(name)
    print("wrote", name)

"""How the built-in model was made: its tokenizer, its checkpoint folder, and the pretraining on drawn scenes.

    lorgnette.demo.scenes → descriptions → batches → pretrain → src/lorgnette/demo/model

Images, words, tokenizer and weights are this project's own; nothing is downloaded. Start it from `tools/`:

    cd tools && python -m demo_model.pretrain --out DIR --minutes 9

The package never imports this; it only ships the folder that was written.
"""

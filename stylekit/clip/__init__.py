"CLIP and Control-CLIP: encoders, training, and how a model hears them"
